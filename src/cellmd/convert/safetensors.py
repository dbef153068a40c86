"""Reads .safetensors files: an own small reader, because NumPy has no bfloat16 and files may come from strangers.

The format: u64 little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, then the data, which
the tensors cover without gap or overlap. Everything is checked when the file is opened; data is then read in blocks of
rows with plain file reads, so that a 10 GB checkpoint never counts as this process's memory.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from cellmd.errors import CheckpointError
from cellmd.quant.floats import STORED

SourceDtype = Literal["bf16", "f16", "f32"]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 200_000
MAX_RANK = 8
MAX_NAME = 400

_DTYPES: dict[str, SourceDtype] = {"BF16": "bf16", "F16": "f16", "F32": "f32"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file: `offset` bytes from the beginning."""

    dtype: SourceDtype
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * STORED[self.dtype].itemsize


class SafetensorsFile:
    """One open file. Reading is safe from several threads. Raises CheckpointError naming the file and the tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def read_stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop (of the first axis; all of a scalar) in the stored dtype, bfloat16 as uint16 bits."""
        tensor = self.tensors[name]
        storage = STORED[tensor.dtype]
        shape, skipped = tensor.shape, 0
        if shape:
            stop = shape[0] if stop is None else stop
            skipped, shape = start * math.prod(shape[1:]), (stop - start, *shape[1:])
        values = np.empty(shape, storage)
        self._read_into(values.reshape(-1).view(np.uint8).data, tensor.offset + skipped * storage.itemsize, name)
        return values

    def _read_into(self, buffer: memoryview, offset: int, name: str) -> None:
        try:
            while buffer:
                n_read = os.preadv(self._file.fileno(), [buffer], offset)
                if not n_read:
                    raise CheckpointError(f"{self.path}: the file ends inside tensor {name!r}")
                buffer, offset = buffer[n_read:], offset + n_read
        except OSError as error:
            raise CheckpointError(f"{self.path}: reading tensor {name!r} failed: {error.strerror}") from error

    def _fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}; the file is damaged or not a .safetensors file: fetch it again")

    def _read_header(self) -> dict[str, StoredTensor]:
        file_bytes = self._file.seek(0, 2)
        if file_bytes < 8:
            raise self._fail(f"only {file_bytes} bytes long")
        prefix = bytearray(8)
        self._read_into(memoryview(prefix), 0, "header")
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > MAX_HEADER_BYTES or header_bytes > file_bytes - 8:
            raise self._fail(f"its header claims {header_bytes} bytes, the file has {file_bytes}")
        text = bytearray(header_bytes)
        self._read_into(memoryview(text), 8, "header")
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise self._fail(f"its header is not valid JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._fail("its header is not a JSON object")
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise self._fail(f"it lists {len(header)} tensors, more than {MAX_TENSORS}")
        begin = 8 + header_bytes
        tensors = {name: self._entry(name, entry, begin) for name, entry in header.items()}
        self._check_coverage(tensors, begin, file_bytes)
        return tensors

    def _entry(self, name: str, entry: Any, begin: int) -> StoredTensor:
        if len(name) > MAX_NAME:
            raise self._fail(f"a tensor's name is {len(name)} characters long")
        if not isinstance(entry, dict):
            raise self._fail(f"the entry of tensor {name!r} is not an object")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has dtype {str(dtype)[:20]!r}; cellmd reads checkpoints in BF16, F16 "
                "and F32, not files that are already quantised"
            )
        if not _naturals(shape) or len(shape) > MAX_RANK:
            raise self._fail(f"tensor {name!r} has no valid shape")
        if not _naturals(offsets) or len(offsets) != 2:
            raise self._fail(f"tensor {name!r} has no valid data_offsets")
        tensor = StoredTensor(_DTYPES[dtype], tuple(shape), begin + offsets[0])
        if offsets[1] - offsets[0] != tensor.n_bytes:
            raise self._fail(
                f"tensor {name!r} of shape {list(shape)} takes {tensor.n_bytes} bytes, "
                f"its data_offsets span {offsets[1] - offsets[0]}"
            )
        return tensor

    def _check_coverage(self, tensors: dict[str, StoredTensor], begin: int, file_bytes: int) -> None:
        at = begin
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
            if tensor.offset != at:
                raise self._fail(f"tensor {name!r} {'overlaps another' if tensor.offset < at else 'follows a gap'}")
            at += tensor.n_bytes
        if at > file_bytes:
            raise CheckpointError(
                f"{self.path}: cut short: its tensors need {at} bytes, the file has {file_bytes}; fetch it again"
            )
        if at < file_bytes:
            raise self._fail(f"{file_bytes - at} bytes follow the last tensor")


def _naturals(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries
