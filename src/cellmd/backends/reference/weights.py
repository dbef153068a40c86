"""Stored tensors as matrices: decoded to float32 a block of rows at a time, as they are used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cellmd.backends.ops import Clip
from cellmd.quant.decode import decode, decode_rows
from cellmd.quant.tensor import PackedTensor

DECODED_BYTES = 256 << 20
"""At most this much stays decoded, in the order of first use; the rest is decoded at each use."""

_BLOCK_BYTES = 32 << 20
"""Decoded at a time of a matrix that does not stay."""


class Budget:
    """What is left of DECODED_BYTES, shared by all matrices of a backend."""

    def __init__(self) -> None:
        self.left = DECODED_BYTES

    def take(self, n_bytes: int) -> bool:
        fits = n_bytes <= self.left
        self.left -= n_bytes if fits else 0
        return fits


class Weights:
    """Rows first .. last (all by default) of a stored tensor, with the clip and bias of its linear layer."""

    def __init__(
        self,
        packed: PackedTensor,
        budget: Budget,
        *,
        clip: Clip | None = None,
        bias: np.ndarray | None = None,
        rows: tuple[int, int] | None = None,
    ) -> None:
        self._packed = packed
        self._budget = budget
        self._first, last = rows or (0, packed.shape[0] if packed.shape else 1)
        self._decoded: np.ndarray | None = None
        self.n_rows = last - self._first
        self.n_columns = packed.shape[-1] if packed.shape else 1
        self.clip = clip
        self.bias = bias

    @property
    def name(self) -> str:
        return self._packed.name

    def slice(self, start: int, stop: int) -> Weights:
        bias = None if self.bias is None else self.bias[start:stop]
        rows = (self._first + start, self._first + stop)
        return Weights(self._packed, self._budget, clip=self.clip, bias=bias, rows=rows)

    def all_values(self) -> np.ndarray:
        """The whole tensor in its own shape."""
        return decode(self._packed)

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """start, stop and float32 values (stop - start, K) of consecutive blocks of rows."""
        row_bytes = 4 * self.n_columns
        if self._decoded is None and self._budget.take(self.n_rows * row_bytes):
            self._decoded = decode_rows(self._packed, slice(self._first, self._first + self.n_rows))
        if self._decoded is not None:
            yield 0, self.n_rows, self._decoded
            return
        step = max(16, _BLOCK_BYTES // row_bytes // 16 * 16)
        for start in range(0, self.n_rows, step):
            stop = min(start + step, self.n_rows)
            yield start, stop, decode_rows(self._packed, slice(self._first + start, self._first + stop))

    def gather(self, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Columns start .. stop of the rows `ids`: float32 (N, stop - start)."""
        return decode_rows(self._packed, self._first + ids)[:, start:stop]
