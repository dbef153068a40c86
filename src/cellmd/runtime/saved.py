"""What the scheduler computed, kept on disk: the beginnings that idle slots hold, and encoded media.

Files are found again by what was in them (tokens, and media by their content), and only for the same model file, the
same code and the same sizes of the cache, so that an answer is what it would be without them. Reading and writing is
done beside the scheduler's thread, which only copies.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cellmd.backends.ops import Tensor
from cellmd.errors import CellmdError
from cellmd.runtime.disk_cache import DiskCache, Stored
from cellmd.runtime.generate import Runner
from cellmd.runtime.reuse import LEAST_KEPT, common

LEAST_SAVED = 32
"""Fewer positions are computed sooner than read."""

_MOST_WAITING = 2
"""Slots that may wait to be written; more are not kept, so that a slow disk takes no memory."""

_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a slot is to hold: layers' bytes of n_written positions."""

    layers: Sequence[np.ndarray]
    n_written: int


class _Entry(NamedTuple):
    keys: np.ndarray
    n_written: int


class Saved:
    """The folder of one model, for one scheduler, on whose thread everything but the constructor is called."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int, runner: Runner, identity: str) -> None:
        """identity: of the model file and of all that decides what its cache holds. Raises ArgumentError."""
        self._disk = DiskCache(folder, max_bytes, identity)
        self._runner = runner
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="cellmd-saved")
        self._writing: dict[str, Future[set[str]]] = {}
        self._entries: dict[str, _Entry] = {}
        for name in self._disk.names("prefix"):
            entry = _entry(self._disk.first_part(name))
            if entry is not None:
                self._entries[name] = entry

    def close(self) -> None:
        """What was to be written has been once this returns."""
        self._beside.shutdown(wait=True)

    # ---- beginnings -----------------------------------------------------------------------------------------------

    def best(self, keys: np.ndarray) -> tuple[str, int]:
        """The file that saves most of a prompt, and how many positions it saves: 0 if none saves any."""
        best, saves = "", 0
        for name, entry in self._entries.items():
            n = common(entry.keys, keys)
            if n > saves and n >= LEAST_KEPT and self._runner.cache.can_go_back(entry.n_written, n):
                best, saves = name, n
        return best, saves

    def load(self, name: str) -> Future[Loaded | None]:
        """The content of a file that `best` named; None if it cannot be used after all."""
        return self._beside.submit(self._load, name, self._entries[name])

    def take_in(self, name: str, loaded: Loaded | None, slot: int) -> bool:
        """Make a slot hold what was loaded. False if it cannot be used after all; then it is not found again."""
        if loaded is not None:
            try:
                self._runner.import_slot(slot, loaded.n_written, loaded.layers)
                return True
            except CellmdError as error:
                _log.warning("%s is not used: %s", name, error)
        self._entries.pop(name, None)
        return False

    def save(self, slot: int, keys: np.ndarray, n_written: int, *, wait: bool = False) -> None:
        """Keep what a slot holds: positions of these keys, in which n_written were ever written.

        wait: for those that are being written, instead of not keeping this one when they are many.
        """
        self._forget_lost()
        if len(keys) < LEAST_SAVED or (len(self._writing) >= _MOST_WAITING and not wait):
            return
        name = self._disk.name("prefix", keys.tobytes())
        if name in self._entries and self._disk.holds(name):
            return
        if self._runner.cache.bytes_for(n_written) > self._disk.max_bytes:
            return
        if wait:
            while self._writing:
                next(iter(self._writing.values())).result()
                self._forget_lost()
        parts = [keys.view(np.uint8), *self._runner.export_slot(slot, n_written)]
        replaced = [old for old, entry in self._entries.items() if self._covers(keys, n_written, entry)]
        for old in replaced:
            del self._entries[old]
        self._entries[name] = _Entry(keys.copy(), n_written)
        self._writing[name] = self._beside.submit(self._write, name, n_written, parts, replaced)

    def _forget_lost(self) -> None:
        """Entries whose files have gone, to make room or because another process removed them, go too."""
        done = [name for name, future in self._writing.items() if future.done()]
        listed = [self._writing.pop(name).result() for name in done]  # in the order in which they were written
        if listed:
            kept = listed[-1] | self._writing.keys()
            self._entries = {name: entry for name, entry in self._entries.items() if name in kept}

    def _covers(self, keys: np.ndarray, n_written: int, entry: _Entry) -> bool:
        """Whether what is saved now also serves whoever goes on from the end of an older one."""
        n = len(entry.keys)
        begins_alike = n < len(keys) and np.array_equal(keys[:n], entry.keys)
        return bool(begins_alike and self._runner.cache.can_go_back(n_written, n))

    def _load(self, name: str, entry: _Entry) -> Loaded | None:
        stored = self._disk.read(name)
        found = _entry(stored)
        if stored is None or found is None or not np.array_equal(found.keys, entry.keys):
            return None
        return Loaded(stored.parts[1:], found.n_written)

    def _write(self, name: str, n_written: int, parts: list[np.ndarray], replaced: list[str]) -> set[str]:
        """The files that there are after it."""
        if self._disk.write(name, {"n_written": n_written}, parts):
            for old in replaced:
                self._disk.drop(old)
        return set(self._disk.names("prefix"))

    # ---- media ----------------------------------------------------------------------------------------------------

    def medium(self, digest: bytes, n_soft_tokens: int) -> Tensor | None:
        """Soft tokens (n_soft_tokens, D) of a medium with this digest."""
        stored = self._disk.read(self._disk.name("medium", digest))
        width = self._runner.model.config.text.d_model
        if stored is None or len(stored.parts) != 1 or stored.parts[0].nbytes != n_soft_tokens * width * 4:
            return None
        return self._runner.floats(stored.parts[0].view(np.float32).reshape(n_soft_tokens, width))

    def save_medium(self, digest: bytes, values: Tensor) -> None:
        content = np.ascontiguousarray(self._runner.to_numpy(values), np.float32).reshape(-1).view(np.uint8)
        name = self._disk.name("medium", digest)
        self._beside.submit(self._disk.write, name, {}, [content])


def _entry(stored: Stored | None) -> _Entry | None:
    """The keys of a file and how many positions were written."""
    if stored is None or not stored.parts or stored.parts[0].nbytes % 8:
        return None
    keys, n_written = stored.parts[0].view(np.int64), stored.head.get("n_written")
    if type(n_written) is not int or not LEAST_SAVED <= len(keys) <= n_written:
        return None
    return _Entry(keys, n_written)
