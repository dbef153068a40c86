"""From float weights to stored arrays, a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellmd.errors import ArgumentError, CheckpointError
from cellmd.quant import floats
from cellmd.quant.error import ErrorStats
from cellmd.quant.layouts import pack, pack_per_group, padded
from cellmd.quant.scales import decode_scales, encode_scales
from cellmd.quant.schemes import QUANTISERS, Quantiser, coding_problem, groups_of
from cellmd.quant.tensor import TILE_ROWS, Coding, PackedTensor, ScaleDtype

_CHUNK_WEIGHTS = 1 << 16
"""Weights worked on at once: they and two copies stay in a core's cache."""

_NEGLIGIBLE = np.float32(2.0**-100)
"""A group with no weight above this is stored as zeros: reciprocals of its scale would leave float32."""


@dataclass(frozen=True)
class EncodedBlock:
    """Stored arrays of a block of rows, flat, as in `PackedTensor`, and how far they are from the source."""

    data: np.ndarray
    scales: np.ndarray | None
    row_factors: np.ndarray | None
    error: ErrorStats


def encode(name: str, array: np.ndarray, coding: Coding, *, search: bool = True) -> PackedTensor:
    """A float array of any shape (quantised: 2-D) as a stored tensor.

    Raises CheckpointError naming the tensor for NaN, infinities and numbers beyond the coding's range, ArgumentError
    for a coding that does not fit the shape. Memory: one copy in float32 besides the result; large tensors go through
    `encode_block`.
    """
    array = np.asarray(array, dtype=np.float32)
    block = encode_block(array, coding, name=name, search=search)
    return PackedTensor(name, array.shape, coding, block.data, block.scales, block.row_factors)


def encode_block(block: np.ndarray, coding: Coding, *, name: str = "", search: bool = True) -> EncodedBlock:
    """Some rows of a tensor, float32 (R, ...), encoded on their own.

    The arrays of consecutive blocks, concatenated, are those of the whole tensor; in tile16 if every block but the last
    has a multiple of 16 rows. This is the seam for encoding in parallel and for faster encoders. Safe to call from
    several threads.
    name: for messages. search: look for the scales of least squared error (int4); without, two to six times faster
    and 0.5 to 2.5 dB worse. Raises as `encode`.
    """
    block = np.ascontiguousarray(block, dtype=np.float32)
    problem = coding_problem(block.shape, coding)
    if problem is not None:
        raise ArgumentError(f"tensor {name!r} of shape {block.shape} cannot be encoded: {problem}")
    if not coding.quantised:
        data = floats.encode(name, block, coding.dtype)
        return EncodedBlock(data, None, None, ErrorStats.of(floats.decode(data, coding.dtype), block.reshape(-1)))
    return _encode_matrix(block, coding, name, search)


def _encode_matrix(block: np.ndarray, coding: Coding, name: str, search: bool) -> EncodedBlock:
    n_rows, n_columns = block.shape
    n_groups = groups_of(n_columns, coding)
    quantiser = QUANTISERS[coding.dtype]
    codes = np.empty(block.shape, np.int8)
    stored, factors, error = [], [], ErrorStats()
    step = max(TILE_ROWS, _CHUNK_WEIGHTS // n_columns)
    for start in range(0, n_rows, step):
        weights = _in_groups(block[start : start + step], n_groups, coding.group_size or n_columns)
        chunk_scales, chunk_factors, chunk_error = _encode_chunk(
            weights, codes[start : start + step], quantiser, coding.scale_dtype or "f16", name, search
        )
        stored.append(chunk_scales)
        factors.append(chunk_factors)
        error += chunk_error
    scales = pack_per_group(np.concatenate(stored), coding.layout)
    row_factors = None
    if coding.scale_dtype == "i8":
        row_factors = pack_per_group(np.concatenate([f for f in factors if f is not None])[:, None], coding.layout)
    return EncodedBlock(pack(codes, coding.dtype, coding.layout), scales, row_factors, error)


def _in_groups(rows: np.ndarray, n_groups: int, group: int) -> np.ndarray:
    """(R, K) -> (R, G, g), the last group filled with zeros."""
    n_rows, n_columns = rows.shape
    if n_columns == n_groups * group:
        return rows.reshape(n_rows, n_groups, group)
    full = np.zeros((n_rows, padded(n_columns, group)), np.float32)
    full[:, :n_columns] = rows
    return full.reshape(n_rows, n_groups, group)


def _encode_chunk(
    weights: np.ndarray, codes: np.ndarray, quantiser: Quantiser, scale_dtype: ScaleDtype, name: str, search: bool
) -> tuple[np.ndarray, np.ndarray | None, ErrorStats]:
    """weights (R, G, g) -> stored scales (R, G), row factors (R,) or None, the error; writes codes int8 (R, K)."""
    low, high = weights.min(axis=-1), weights.max(axis=-1)
    largest = np.maximum(-low, high)
    if not np.isfinite(largest).all():
        raise CheckpointError(f"tensor {name!r} holds NaN or infinite values; the checkpoint is damaged")
    wanted = quantiser.choose_scales(weights, (low, high), search=search)
    wanted[largest <= _NEGLIGIBLE] = 0
    stored, factors = encode_scales(wanted, scale_dtype, must_reach=not quantiser.clips)
    scales = decode_scales(stored, scale_dtype, factors)
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"tensor {name!r} holds {float(largest.max()):g}, beyond the range of {scale_dtype} scales; use bf16 scales"
        )
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    values = weights * inverse[..., None]
    np.rint(values, out=values)
    np.clip(values, quantiser.low, quantiser.high, out=values)
    codes[...] = values.reshape(len(values), -1)[:, : codes.shape[1]]
    values *= scales[..., None]
    values -= weights
    return stored, factors, _chunk_error(values, weights, codes.size)


def _chunk_error(difference: np.ndarray, weights: np.ndarray, count: int) -> ErrorStats:
    """Sums of squares in float32 within a group, where they lose nothing that matters, in float64 across groups."""
    squares = np.einsum("rgk,rgk->rg", difference, difference)
    signal = np.einsum("rgk,rgk->rg", weights, weights)
    return ErrorStats(
        count=count,
        max_abs=max(float(difference.max()), -float(difference.min())),
        error_energy=float(squares.sum(dtype=np.float64)),
        signal_energy=float(signal.sum(dtype=np.float64)),
    )
