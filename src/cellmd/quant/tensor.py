"""What one stored tensor is: its shape, how its numbers are coded, how its bytes lie.

A `PackedTensor` is what the container hands out and what every backend takes. It owns nothing: its arrays are views of
the mapped file. `docs/format.md` is the normative description of the bytes; this module is its vocabulary.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Literal

import numpy as np

Dtype = Literal["f32", "f16", "bf16", "i8", "i4"]
ScaleDtype = Literal["f16", "bf16", "f32", "i8"]
Layout = Literal["row", "tile16"]

TILE_ROWS = 16
TILE_COLUMNS = 8
"""One tile16 block: 16 rows of 8 columns, 64 bytes at int4."""


@dataclass(frozen=True)
class Coding:
    """How a tensor's numbers become bytes. Float tensors have no scales: group_size 0, scale_dtype None.

    group_size: columns that share a scale; 0 with a scale_dtype means one scale for a whole row.
    scale_dtype "i8": the scale of a group is code * row_factor, one float32 factor a row (`docs/format.md`).
    """

    dtype: Dtype
    layout: Layout = "row"
    group_size: int = 0
    scale_dtype: ScaleDtype | None = None

    @property
    def quantised(self) -> bool:
        return self.dtype in ("i4", "i8")


class OpenFile:
    """A descriptor of its own for a file that is open, closed with the last that holds this."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True)
class FilePlace:
    """A place in an open file, in bytes from its beginning."""

    file: OpenFile
    offset: int


@dataclass(frozen=True)
class PackedTensor:
    """One tensor as it lies in the file.

    shape: the logical shape, without padding; quantised tensors are 2-D, N rows (outputs) of K columns (inputs).
    data: uint8 (n_bytes,), a read-only view.
    scales: the stored scales as their own dtype (uint16 for bf16), flat in file order, or None.
    row_factors: float32 (N padded to the layout,), with scale_dtype "i8" only.
    place: where `data` lies in the file, of a table that is looked up: reading a row brings nothing else into memory.
    """

    name: str
    shape: tuple[int, ...]
    coding: Coding
    data: np.ndarray
    scales: np.ndarray | None = None
    row_factors: np.ndarray | None = None
    place: FilePlace | None = None

    @property
    def n_bytes(self) -> int:
        arrays = (self.data, self.scales, self.row_factors)
        return sum(array.nbytes for array in arrays if array is not None)
