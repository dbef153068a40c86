"""A folder of private files that outlive the process: each checked whole before it is used, all together bounded.

    MAGIC (8 bytes) | bytes of the head (uint32, little endian) | head, JSON | parts, one after another | SHA-256

The head says whose file it is (`identity`), its name, and how many bytes each part has. A file appears whole or not at
all. One that is damaged, of another kind, of another user or open to other users is not used; it is logged and
otherwise left alone. Nothing but files of this module's own names is ever touched. Several processes
may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cellmd.errors import ArgumentError

MAGIC = b"CELLMDK1"

_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.[a-z]{1,16}")
_UNFINISHED = re.compile(_NAME.pattern + r"\.[A-Za-z0-9_]{1,16}\.tmp")
_UNFINISHED_SECONDS = 3600.0
_MOST_HEAD_BYTES = 1 << 20
_MOST_PARTS = 4096
_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """What a file holds. head: what its writer said of it. parts: uint8 (B,) each."""

    head: Mapping[str, Any]
    parts: Sequence[np.ndarray]


class _UnusableError(Exception):
    """Why a file is not used."""


class DiskCache:
    """The files of one identity in a folder; safe to use from several threads.

    folder: made, for this user alone, if it is not there. max_bytes: of all files in it, also those of other
    identities; the least lately used go first. Raises ArgumentError if the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int, identity: str) -> None:
        if max_bytes < 1:
            raise ArgumentError(f"the cache on disk may have {max_bytes} bytes; give it at least 1")
        self.max_bytes = max_bytes
        self._folder = Path(folder)
        self._identity = identity
        self._prefix = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._trimming = threading.Lock()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._folder.stat()
        except OSError as error:
            raise ArgumentError(f"{folder}: no folder for the cache: {error.strerror}") from None
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ArgumentError(
                f"{folder}: other users may write to this folder, and what lies in it is believed; give one of your own"
            )
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise ArgumentError(f"{folder}: this folder cannot be written to")
        self._trim(0)

    def name(self, kind: str, key: bytes) -> str:
        """The file for what `key` stands for. kind: lower-case letters, the file's suffix."""
        return f"{self._prefix}-{hashlib.sha256(key).hexdigest()[:32]}.{kind}"

    def names(self, kind: str) -> list[str]:
        """Files of this identity and kind, those used latest first."""
        found = [(modified, name) for name, _, modified in self._files() if name.endswith(f".{kind}")]
        return [name for _, name in sorted(found, reverse=True) if name.startswith(self._prefix)]

    def holds(self, name: str) -> bool:
        return (self._folder / name).exists()

    def first_part(self, name: str) -> Stored | None:
        """The head and the first part alone, which are not compared with the checksum: `read` does that."""
        return self._opened(name, lambda file, size: self._read(name, file, size, n_parts=1))

    def read(self, name: str) -> Stored | None:
        """All of a file, checked; None if there is none that can be used."""
        found = self._opened(name, lambda file, size: self._whole(name, file, size))
        if found is not None:
            with contextlib.suppress(OSError):  # another process has just removed it
                os.utime(self._folder / name)
        return found

    def write(self, name: str, head: Mapping[str, Any], parts: Sequence[np.ndarray]) -> bool:
        """Keep this under a name, in place of what was there. False, and logged, if there is no room or no disk."""
        sizes = [part.nbytes for part in parts]
        shown = json.dumps({**head, "identity": self._identity, "name": name, "sizes": sizes}).encode()
        total = len(MAGIC) + 4 + len(shown) + sum(part.nbytes for part in parts) + _DIGEST_BYTES
        if total > self.max_bytes:
            return False
        self._trim(total)
        unfinished = None
        try:
            # mkstemp makes files that their owner alone may read and write.
            descriptor, unfinished = tempfile.mkstemp(prefix=f"{name}.", suffix=".tmp", dir=self._folder)
            with os.fdopen(descriptor, "wb") as file:
                digest = hashlib.sha256()
                start = MAGIC + struct.pack("<I", len(shown)) + shown
                for content in (memoryview(start), *(part.data for part in parts)):
                    digest.update(content)
                    file.write(content)
                file.write(digest.digest())
            os.replace(unfinished, self._folder / name)
        except OSError as error:
            _log.warning("%s: nothing is kept on disk: %s", self._folder, error.strerror)
            if unfinished is not None:
                Path(unfinished).unlink(missing_ok=True)
            return False
        return True

    def drop(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: %s cannot be removed: %s", self._folder, name, error.strerror)

    # ---- reading --------------------------------------------------------------------------------------------------

    def _opened(self, name: str, read: Any) -> Stored | None:
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise _UnusableError("not a private file of this user")
                found: Stored = read(file, status.st_size)
                return found
        except FileNotFoundError:
            return None
        except _UnusableError as error:
            _log.warning("%s: %s is not used: %s", self._folder, name, error)
        except OSError as error:
            _log.warning("%s: %s is not used: %s", self._folder, name, error.strerror)
        return None

    def _whole(self, name: str, file: BinaryIO, size: int) -> Stored:
        found = self._read(name, file, size)
        said = file.read(_DIGEST_BYTES + 1)
        file.seek(0)
        digest, left = hashlib.sha256(), size - _DIGEST_BYTES
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise _UnusableError("it became shorter")
            digest.update(piece)
            left -= len(piece)
        if said != digest.digest():
            raise _UnusableError("its checksum does not match")
        return found

    def _read(self, name: str, file: BinaryIO, size: int, n_parts: int | None = None) -> Stored:
        start = file.read(len(MAGIC) + 4)
        if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC):
            raise _UnusableError("it is of another kind")
        (head_bytes,) = struct.unpack("<I", start[len(MAGIC) :])
        if head_bytes > min(size, _MOST_HEAD_BYTES):
            raise _UnusableError("its head is too large")
        try:
            head = json.loads(file.read(head_bytes))
            sizes = head["sizes"]
            whose, named = head["identity"], head["name"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _UnusableError("its head is no JSON of the right form") from None
        if whose != self._identity:
            raise _UnusableError("it is of another model or machine")
        if named != name:
            raise _UnusableError("it was written under another name")
        if not isinstance(sizes, list) or len(sizes) > _MOST_PARTS or not all(type(n) is int and n >= 0 for n in sizes):
            raise _UnusableError("its head does not say what it holds")
        if len(start) + head_bytes + sum(sizes) + _DIGEST_BYTES != size:
            raise _UnusableError("it has another size than its head says")
        parts = []
        for n_bytes in sizes[:n_parts]:
            part = np.empty(n_bytes, np.uint8)
            if file.readinto(part.data) != n_bytes:  # type: ignore[attr-defined]
                raise _UnusableError("it became shorter")
            parts.append(part)
        return Stored(head, parts)

    # ---- bounds ---------------------------------------------------------------------------------------------------

    def _files(self) -> Iterator[tuple[str, int, float]]:
        """Name, size and time of last use of every file of this module's."""
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if not (_NAME.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name)):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    yield entry.name, status.st_size, status.st_mtime
        except OSError as error:
            _log.warning("%s: cannot be listed: %s", self._folder, error.strerror)

    def _trim(self, n_new: int) -> None:
        """Make room for so many more bytes, and remove what a process that died left unfinished."""
        with self._trimming:
            files = sorted(self._files(), key=lambda file: file[2])
            total = n_new + sum(size for _, size, _ in files)
            for name, size, modified in files:
                unfinished = not _NAME.fullmatch(name)
                old = time.time() - modified > _UNFINISHED_SECONDS
                if (unfinished and old) or (not unfinished and total > self.max_bytes):
                    self.drop(name)
                    total -= size
