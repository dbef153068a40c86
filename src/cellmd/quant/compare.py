"""A stored tensor beside its source."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cellmd.errors import ArgumentError
from cellmd.quant.decode import decode, decode_rows
from cellmd.quant.error import ErrorStats
from cellmd.quant.tensor import PackedTensor

_BLOCK_WEIGHTS = 1 << 22


class RowSource(Protocol):
    """A float array, or anything of a shape that gives float rows for a slice of the first axis, such as a reader of a
    checkpoint: a whole tensor never needs to be in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice) -> Any: ...


def compare(packed: PackedTensor, source: RowSource) -> ErrorStats:
    """The error of a stored tensor against its source, in blocks of rows. Raises ArgumentError if shapes differ."""
    if tuple(source.shape) != packed.shape:
        raise ArgumentError(f"tensor {packed.name!r} has shape {packed.shape}, its source {tuple(source.shape)}")
    if not packed.shape:
        return ErrorStats.of(decode(packed), np.asarray(source, dtype=np.float32))
    width = 1
    for size in packed.shape[1:]:
        width *= size
    step = max(16, _BLOCK_WEIGHTS // width // 16 * 16)
    error = ErrorStats()
    for start in range(0, packed.shape[0], step):
        rows = slice(start, min(start + step, packed.shape[0]))
        error += ErrorStats.of(decode_rows(packed, rows), np.asarray(source[rows], dtype=np.float32))
    return error
