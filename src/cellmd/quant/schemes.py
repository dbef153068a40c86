"""The table of number codings, and what holds for each: which forms are allowed, how many bytes they take.

To add a coding: its quantiser in a file of its own, a row in QUANTISERS, its layouts in `layouts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cellmd.quant import int4, int8
from cellmd.quant.floats import STORED
from cellmd.quant.layouts import padded_rows, row_bytes
from cellmd.quant.tensor import Coding, Dtype

GROUP_SIZES = (0, 32, 64, 128, 256)
"""Columns that may share a scale; 0 is a whole row."""

LAYOUTS = ("row", "tile16")
FLOATS = ("f32", "f16", "bf16")
SCALE_DTYPES = ("f16", "bf16", "f32", "i8")


class ScaleChooser(Protocol):
    def __call__(
        self, weights: np.ndarray, extremes: tuple[np.ndarray, np.ndarray], *, search: bool = True
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Quantiser:
    """low, high: the range of codes. clips: whether its scales may leave weights beyond that range."""

    low: int
    high: int
    choose_scales: ScaleChooser
    clips: bool


QUANTISERS: dict[Dtype, Quantiser] = {
    "i4": Quantiser(int4.LOW, int4.HIGH, int4.choose_scales, clips=True),
    "i8": Quantiser(int8.LOW, int8.HIGH, int8.choose_scales, clips=False),
}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a stored tensor's blobs; 0 where it has none."""

    data: int
    scales: int = 0
    row_factors: int = 0

    @property
    def total(self) -> int:
        return self.data + self.scales + self.row_factors


def sizes(shape: tuple[int, ...], coding: Coding) -> Sizes:
    """Exact byte counts of a tensor of this shape. The sizes of the first rows alone are where the next
    row's bytes begin; in tile16 that is so at multiples of 16 rows."""
    if not coding.quantised:
        return Sizes(math.prod(shape) * STORED[coding.dtype].itemsize)
    n_rows, n_columns = shape
    assert coding.scale_dtype is not None
    stored_rows = padded_rows(n_rows, coding.layout)
    return Sizes(
        data=stored_rows * row_bytes(n_columns, coding.dtype, coding.layout),
        scales=stored_rows * groups_of(n_columns, coding) * STORED[coding.scale_dtype].itemsize,
        row_factors=stored_rows * 4 if coding.scale_dtype == "i8" else 0,
    )


def groups_of(n_columns: int, coding: Coding) -> int:
    """Scales of one row."""
    return -(-n_columns // (coding.group_size or n_columns))


def coding_problem(shape: tuple[int, ...], coding: Coding) -> str | None:
    """Why a tensor of this shape cannot be coded so, or None if it can."""
    checks: list[tuple[bool, Callable[[], str]]] = [
        (all(size > 0 for size in shape), lambda: f"a dimension of {list(shape)} is 0"),
        (coding.layout in LAYOUTS, lambda: f"unknown layout {coding.layout!a}"),
        (coding.dtype in FLOATS or coding.dtype in QUANTISERS, lambda: f"unknown dtype {coding.dtype!a}"),
    ]
    if coding.quantised:
        checks += [
            (len(shape) == 2, lambda: f"{coding.dtype} takes 2 dimensions, not {len(shape)}"),
            (coding.group_size in GROUP_SIZES, lambda: f"group_size {coding.group_size} is not one of {GROUP_SIZES}"),
            (coding.scale_dtype in SCALE_DTYPES, lambda: f"unknown scale_dtype {coding.scale_dtype!a}"),
        ]
    else:
        plain = coding.layout == "row" and coding.group_size == 0 and coding.scale_dtype is None
        checks.append((plain, lambda: f"{coding.dtype} takes the layout row and no scales"))
    return next((describe() for holds, describe in checks if not holds), None)
