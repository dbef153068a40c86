"""How a matrix of weights becomes codes and scales: the specification, in NumPy.

The native module does the same, many times as fast, and gives the same bytes (`tests/native/test_encode.py`): each
number is made of the same float32 operations in the same order. So the bytes of a row depend on that row alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cellmd.quant.layouts import pack, pack_per_group, padded
from cellmd.quant.scales import decode_scales, encode_scales
from cellmd.quant.schemes import QUANTISERS, Quantiser, groups_of
from cellmd.quant.sums import lane_sums, running_sum
from cellmd.quant.tensor import TILE_ROWS, Coding, ScaleDtype

_CHUNK_WEIGHTS = 1 << 16
"""Weights worked on at once: they and two copies stay in a core's cache."""

_NEGLIGIBLE = np.float32(2.0**-100)
"""A group with no weight above this is stored as zeros: reciprocals of its scale would leave float32."""


class Rounding(NamedTuple):
    """What came of it. finite: whether the weights are numbers; if not, nothing else holds. in_range: whether the
    scales can be stored. largest, max_abs: the largest magnitude of a weight and of an error. error_energy,
    signal_energy: sums of squares of the errors and of the weights, in float32 within a group, where they lose nothing
    that matters, and in float64 across groups."""

    finite: bool
    in_range: bool
    largest: float
    max_abs: float
    error_energy: float
    signal_energy: float


def round_matrix(
    rows: np.ndarray,
    coding: Coding,
    search: bool,
    data: np.ndarray,
    scales: np.ndarray,
    row_factors: np.ndarray | None,
) -> Rounding:
    """rows: float32 (R, K), finite or not. data uint8, scales in their stored type, row_factors float32: flat buffers
    for what is stored, of exactly the right sizes."""
    n_rows, n_columns = rows.shape
    n_groups = groups_of(n_columns, coding)
    codes = np.empty(rows.shape, np.int8)
    step = max(TILE_ROWS, _CHUNK_WEIGHTS // n_columns)
    chunks = []
    for start in range(0, n_rows, step):
        weights = _in_groups(rows[start : start + step], n_groups, coding.group_size or n_columns)
        if not np.isfinite(weights).all():
            return Rounding(False, False, 0.0, 0.0, 0.0, 0.0)
        chunk = codes[start : start + step]
        with np.errstate(over="ignore", invalid="ignore"):  # seen by the scales, which are infinite then
            chunks.append(_round_chunk(weights, chunk, QUANTISERS[coding.dtype], coding.scale_dtype or "f16", search))
    data[...] = pack(codes, coding.dtype, coding.layout)
    scales[...] = pack_per_group(np.concatenate([chunk.stored for chunk in chunks]), coding.layout)
    if row_factors is not None:
        factors = np.concatenate([chunk.factors for chunk in chunks if chunk.factors is not None])
        row_factors[...] = pack_per_group(factors[:, None], coding.layout)
    return Rounding(
        finite=True,
        in_range=all(chunk.in_range for chunk in chunks),
        largest=max(chunk.largest for chunk in chunks),
        max_abs=max(chunk.max_abs for chunk in chunks),
        error_energy=running_sum(np.concatenate([chunk.errors for chunk in chunks])),
        signal_energy=running_sum(np.concatenate([chunk.signal for chunk in chunks])),
    )


class _Chunk(NamedTuple):
    """stored: scales (R, G). factors: (R,) or None. errors, signal: sums of squares of each group (R, G)."""

    stored: np.ndarray
    factors: np.ndarray | None
    in_range: bool
    largest: float
    max_abs: float
    errors: np.ndarray
    signal: np.ndarray


def _round_chunk(
    weights: np.ndarray, codes: np.ndarray, quantiser: Quantiser, scale_dtype: ScaleDtype, search: bool
) -> _Chunk:
    """weights float32 (R, G, g), finite; writes codes int8 (R, K)."""
    low, high = weights.min(axis=-1), weights.max(axis=-1)
    largest = np.maximum(-low, high)
    wanted = quantiser.choose_scales(weights, (low, high), search=search)
    wanted[largest <= _NEGLIGIBLE] = 0
    stored, factors = encode_scales(wanted, scale_dtype, must_reach=not quantiser.clips)
    scales = decode_scales(stored, scale_dtype, factors)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    values = weights * inverse[..., None]
    np.rint(values, out=values)
    np.clip(values, quantiser.low, quantiser.high, out=values)
    codes[...] = values.reshape(len(values), -1)[:, : codes.shape[1]]
    values *= scales[..., None]
    values -= weights
    return _Chunk(
        stored=stored,
        factors=factors,
        in_range=bool(np.isfinite(scales).all()),
        largest=float(largest.max()),
        max_abs=max(float(values.max()), -float(values.min())),
        errors=lane_sums(values * values),
        signal=lane_sums(weights * weights),
    )


def _in_groups(rows: np.ndarray, n_groups: int, group: int) -> np.ndarray:
    """(R, K) -> (R, G, g), the last group filled with zeros."""
    n_rows, n_columns = rows.shape
    if n_columns == n_groups * group:
        return rows.reshape(n_rows, n_groups, group)
    full = np.zeros((n_rows, padded(n_columns, group)), np.float32)
    full[:, :n_columns] = rows
    return full.reshape(n_rows, n_groups, group)
