"""Writing a .cellmd file: everything is declared first, so that every byte's place is known; then blocks come in any
order from any number of threads; the header, with the checksums, is written last."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cellmd.container import document
from cellmd.container import header as headers
from cellmd.container.header import PARTS
from cellmd.container.layout import (
    BLOB_ALIGNMENT,
    DATA_ALIGNMENT,
    MAGIC,
    MAX_HEADER_BYTES,
    NO_DIGEST,
    PREFIX_BYTES,
    VERSION,
    aligned,
)
from cellmd.container.pages import LargePieces
from cellmd.errors import ArgumentError, ContainerError
from cellmd.quant import Coding, EncodedBlock, Sizes, coding_problem, sizes
from cellmd.quant.floats import STORED
from cellmd.quant.tensor import TILE_ROWS

_COMPRESSION_LEVEL = 6
_READ_BACK_BYTES = 4 << 20

_QUALITY_BYTES_PER_TENSOR = 96
"""Room kept in the header for the figures of one quantised tensor, besides its name."""

_QUALITY_BYTES = 1024
"""Room kept for what else `quality` says."""


@dataclass(frozen=True)
class TensorDeclaration:
    name: str
    shape: tuple[int, ...]
    coding: Coding


class ContainerWriter:
    """Writes one version 2 file. A context manager: whatever leaves the `with` before `finish` has returned leaves no
    file behind, under no name.

        with ContainerWriter(path, tensors=..., assets=..., config=..., provenance=...) as writer:
            writer.write(name, first_row, encode_block(rows, coding))   # from any thread, in any order
            writer.finish(quality)

    The same input gives the same bytes. The file appears under its name at once and complete, or not at all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tensors: Sequence[TensorDeclaration],
        config: Mapping[str, Any],
        assets: Mapping[str, bytes] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """tensors lie in the file in the order given, after the assets. assets: name -> content, compressed here if
        that makes them smaller and the name does not end in `.bin`. Raises ArgumentError for what no reader would
        accept, ContainerError if the folder cannot be written to."""
        self.path = Path(path)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        if len(self._tensors) != len(tensors):
            raise ArgumentError("a tensor is declared twice")
        for tensor in tensors:
            problem = coding_problem(tensor.shape, tensor.coding)
            if problem is not None:
                raise ArgumentError(f"tensor {tensor.name!r} of shape {tensor.shape} cannot be stored: {problem}")
        self._config, self._provenance = dict(config), dict(provenance or {})
        self._blobs: dict[tuple[str, str], _Blob] = {}
        self._asset_facts: dict[str, dict[str, Any]] = {}
        stored_assets: dict[str, bytes] = {}
        for name, content in (assets or {}).items():
            compression, stored_assets[name] = _compressed(name, content)
            self._asset_facts[name] = {"size": len(content), "compression": compression}
            self._blobs["asset", name] = _Blob(len(stored_assets[name]))
        for tensor in tensors:
            for part in PARTS:
                n_bytes = getattr(sizes(tensor.shape, tensor.coding), part)
                if n_bytes:
                    self._blobs[part, tensor.name] = _Blob(n_bytes)
        self._header_end = self._place()
        try:
            headers.read(document.parse(self._header_text({})))
        except ContainerError as error:
            raise ArgumentError(f"{self.path}: no reader would accept this: {error}") from None
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self._finished = False
        self._pieces: LargePieces | None = None
        with self._explained():
            self._file: int | None = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with self._explained():
                os.ftruncate(self._file, self._n_bytes)
                self._pieces = LargePieces(self._file, self._n_bytes)
                for name, stored in stored_assets.items():
                    self._blobs["asset", name].write(self._file, 0, memoryview(stored))
        except BaseException:
            self.discard()
            raise

    @property
    def n_bytes(self) -> int:
        """Size of the finished file, known from the start."""
        return self._n_bytes

    def write(self, name: str, first_row: int, block: EncodedBlock) -> None:
        """Store rows of a tensor from `first_row` on, in the layout tile16 a multiple of 16. Safe from any thread.

        Raises ArgumentError for rows that do not fit or were written before, ContainerError if the disk refuses.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ArgumentError(f"tensor {name!r} was not declared")
        if tensor.coding.layout == "tile16" and first_row % TILE_ROWS:
            raise ArgumentError(f"tensor {name!r}: a block starts at row {first_row}, no multiple of {TILE_ROWS}")
        before = sizes((first_row, *tensor.shape[1:]), tensor.coding) if first_row else Sizes(0)
        for part, blob, array in self._matched(tensor, block):
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            with self._explained():
                try:
                    start = getattr(before, part)
                    if tensor.coding.layout == "tile16":  # of the others a row is read here and there
                        self._make_pieces(blob.offset + start, len(content))
                    blob.write(self._descriptor, start, content)
                except ValueError as error:
                    raise ArgumentError(f"{part} of tensor {name!r}, row {first_row}: {error}") from None

    def _make_pieces(self, start: int, n_bytes: int) -> None:
        if self._pieces is not None:
            self._pieces.make(start, start + n_bytes)

    def _matched(self, tensor: TensorDeclaration, block: EncodedBlock) -> list[tuple[str, _Blob, np.ndarray]]:
        """The block's arrays beside the blobs they belong to."""
        arrays = {part: array for part in PARTS if (array := getattr(block, part)) is not None}
        blobs = {part: blob for part in PARTS if (blob := self._blobs.get((part, tensor.name))) is not None}
        scales, scale_dtype = arrays.get("scales"), tensor.coding.scale_dtype
        if arrays.keys() != blobs.keys() or (scales is not None and scales.dtype != STORED[scale_dtype or "f16"]):
            raise ArgumentError(f"tensor {tensor.name!r} was declared with another coding than its block has")
        return [(part, blobs[part], arrays[part]) for part in arrays]

    def finish(self, quality: Mapping[str, Any] | None = None) -> None:
        """Write the header and let the file appear under its name.

        quality: JSON of at most about 96 bytes a quantised tensor and its name: `ErrorStats.as_json` fits. Raises
        ArgumentError if a tensor is incomplete or `quality` is too long.
        """
        for (part, name), blob in self._blobs.items():
            if not blob.complete:
                raise ArgumentError(f"{part} of tensor {name!r} is incomplete: {blob.describe()}")
        text = self._header_text(dict(quality or {}))
        room = self._header_end - PREFIX_BYTES
        if len(text) > room:
            raise ArgumentError(f"quality does not fit: the header takes {len(text)} bytes, {room} were kept for it")
        prefix = MAGIC + struct.pack("<BI", VERSION, room)
        with self._explained():
            _write_fully(self._descriptor, 0, memoryview(prefix + text.ljust(room)))
            os.fsync(self._descriptor)
            self._close()
            os.replace(self._temporary, self.path)
            self._finished = True
            _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove what was written so far. Of no effect after `finish`."""
        self._close()
        if not self._finished:
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            if self._pieces is not None:
                self._pieces.close()
            os.close(self._file)
            self._file = None

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise ArgumentError(f"{self.path}: the writer is closed")
        return self._file

    def _place(self) -> int:
        """Give every blob its offset; returns where the header ends. The header fills its room up to the first blob:
        it is as long as its text, the room for quality, and spaces up to a multiple of 4096."""
        quality_room = _QUALITY_BYTES + sum(
            len(json.dumps(tensor.name)) + _QUALITY_BYTES_PER_TENSOR
            for tensor in self._tensors.values()
            if tensor.coding.quantised
        )
        start = 0
        while True:  # larger offsets have more digits, so the header may grow with them; it never shrinks
            end = start
            for blob in self._blobs.values():
                blob.offset = aligned(end, BLOB_ALIGNMENT)
                end = blob.offset + blob.n_bytes
            needed = aligned(PREFIX_BYTES + len(self._header_text({})) + quality_room, DATA_ALIGNMENT)
            if needed <= start:
                break
            start = needed
        if start - PREFIX_BYTES > MAX_HEADER_BYTES:
            raise ArgumentError(f"the header would take {start} bytes, more than the {MAX_HEADER_BYTES} allowed")
        self._n_bytes = end
        return start

    def _header_text(self, quality: dict[str, Any]) -> bytes:
        header = {
            "format": "cellmd",
            "config": self._config,
            "tensors": [self._tensor_json(tensor) for tensor in self._tensors.values()],
            "assets": {
                name: {**self._blobs["asset", name].as_json(), **facts} for name, facts in self._asset_facts.items()
            },
            "provenance": self._provenance,
            "quality": quality,
        }
        try:
            return json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"config, provenance or quality cannot be written as JSON: {error}") from None

    def _tensor_json(self, tensor: TensorDeclaration) -> dict[str, Any]:
        blobs = {part: self._blobs.get((part, tensor.name)) for part in PARTS}
        return {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.coding.dtype,
            "layout": tensor.coding.layout,
            "group_size": tensor.coding.group_size,
            "scale_dtype": tensor.coding.scale_dtype,
            **{part: blob.as_json() for part, blob in blobs.items() if blob is not None},
        }

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Refusals of the operating system, such as a full disk, as a ContainerError that names the file."""
        try:
            yield
        except OSError as error:
            raise ContainerError(f"{self.path}: cannot be written: {error.strerror or error}") from None


class _Blob:
    """A range of the file being written, and its checksum so far.

    The digest takes bytes in order. Blocks that come early are noted, and read back from the file, where they are still
    in the system's cache, once the gap before them is closed: no block is kept in memory.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.offset = 0
        self._digest = hashlib.sha256()
        self._digested = 0
        self._claimed: dict[int, int] = {}  # start -> end of blocks beyond _digested, being written or written
        self._written: dict[int, int] = {}  # those of them that are in the file
        self._lock = threading.Lock()

    @property
    def complete(self) -> bool:
        return self._digested == self.n_bytes

    def describe(self) -> str:
        return f"{self._digested} of {self.n_bytes} bytes are there, and {len(self._written)} blocks after a gap"

    def as_json(self) -> dict[str, Any]:
        sha256 = self._digest.hexdigest() if self.complete else NO_DIGEST
        return {"offset": self.offset, "nbytes": self.n_bytes, "sha256": sha256}

    def write(self, file: int, start: int, content: memoryview) -> None:
        """Raises ValueError if the content leaves the blob or meets what was written before."""
        end = start + len(content)
        with self._lock:
            if end > self.n_bytes:
                raise ValueError(f"bytes {start} to {end} of a blob of {self.n_bytes}")
            meets = any(start < other_end and other < end for other, other_end in self._claimed.items())
            if start < self._digested or meets:
                raise ValueError(f"bytes {start} to {end} meet bytes written before")
            self._claimed[start] = end
        _write_fully(file, self.offset + start, content)
        with self._lock:
            self._written[start] = end
            if start == self._digested:
                self._digest.update(content)
                self._advance()
            while self._digested in self._written:
                early = self._digested
                for at in range(early, self._written[early], _READ_BACK_BYTES):
                    length = min(_READ_BACK_BYTES, self._written[early] - at)
                    self._digest.update(os.pread(file, length, self.offset + at))
                self._advance()

    def _advance(self) -> None:
        del self._claimed[self._digested]
        self._digested = self._written.pop(self._digested)


def _compressed(name: str, content: bytes) -> tuple[str, bytes]:
    """The compression that makes content smallest, and the result. What is used where it lies is left as it is."""
    if name.endswith(".bin"):
        return "none", content
    smaller = zlib.compress(content, _COMPRESSION_LEVEL)
    return ("zlib", smaller) if len(smaller) < len(content) else ("none", content)


def _write_fully(file: int, offset: int, content: memoryview) -> None:
    while content:
        n_written = os.pwrite(file, content, offset)
        content, offset = content[n_written:], offset + n_written


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
