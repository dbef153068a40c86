"""From float weights to stored arrays, a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellmd.errors import ArgumentError, CheckpointError
from cellmd.quant import floats, int4
from cellmd.quant.error import ErrorStats
from cellmd.quant.floats import STORED, bf16_to_f32
from cellmd.quant.rounding import Rounding, round_matrix
from cellmd.quant.schemes import coding_problem, sizes
from cellmd.quant.tensor import Coding, PackedTensor

try:
    from cellmd._native import encode_matrix
except ImportError:  # a source tree that was never built
    encode_matrix = None

_NO_SHRINKS = np.empty(0, np.float32)


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
    """Some rows of a tensor (R, ...), float32 or bfloat16 by its bits in uint16, encoded on their own.

    The arrays of consecutive blocks, concatenated, are those of the whole tensor; in tile16 if every block but the last
    has a multiple of 16 rows. This is the seam for encoding in parallel. Safe to call from several threads.
    name: for messages. search: look for the scales of least squared error (int4); without, two to six times faster
    and 0.5 to 2.5 dB worse. Raises as `encode`.
    """
    bf16 = block.dtype == STORED["bf16"]
    block = np.ascontiguousarray(block, dtype=STORED["bf16"] if bf16 else np.float32)
    problem = coding_problem(block.shape, coding)
    if problem is not None:
        raise ArgumentError(f"tensor {name!r} of shape {block.shape} cannot be encoded: {problem}")
    if not coding.quantised:
        block = bf16_to_f32(block) if bf16 else block
        data = floats.encode(name, block, coding.dtype)
        return EncodedBlock(data, None, None, ErrorStats.of(floats.decode(data, coding.dtype), block.reshape(-1)))
    return _encode_matrix(block, coding, name, search)


def _encode_matrix(block: np.ndarray, coding: Coding, name: str, search: bool) -> EncodedBlock:
    expected, scale_type = sizes(block.shape, coding), STORED[coding.scale_dtype or "f16"]
    data = np.empty(expected.data, np.uint8)
    scales = np.empty(expected.scales // scale_type.itemsize, scale_type)
    row_factors = np.empty(expected.row_factors // 4, np.float32) if expected.row_factors else None
    rounding = _round(block, coding, search, data, scales, row_factors)
    if not rounding.finite:
        raise CheckpointError(f"tensor {name!r} holds NaN or infinite values; the checkpoint is damaged")
    if not rounding.in_range:
        raise CheckpointError(
            f"tensor {name!r} holds {rounding.largest:g}, beyond the range of {coding.scale_dtype} scales; use bf16 "
            "scales"
        )
    error = ErrorStats(block.size, rounding.max_abs, rounding.error_energy, rounding.signal_energy)
    return EncodedBlock(data, scales, row_factors, error)


def _round(
    block: np.ndarray,
    coding: Coding,
    search: bool,
    data: np.ndarray,
    scales: np.ndarray,
    row_factors: np.ndarray | None,
) -> Rounding:
    """`round_matrix`, by the native module where there is one: the same bytes."""
    if encode_matrix is None:
        rows = bf16_to_f32(block) if block.dtype == STORED["bf16"] else block
        return round_matrix(rows, coding, search, data, scales, row_factors)
    shrinks = int4.shrinks(coding.group_size or block.shape[1]) if search and coding.dtype == "i4" else _NO_SHRINKS
    outcome = encode_matrix(
        block,
        coding.dtype,
        coding.layout,
        coding.group_size,
        coding.scale_dtype,
        shrinks,
        data,
        scales.view(np.uint8),
        row_factors,
    )
    return Rounding(*outcome)
