"""From stored arrays back to float32, whole or the rows that are asked for."""

from __future__ import annotations

import numpy as np

from cellmd.quant import floats
from cellmd.quant.layouts import Rows, unpack, unpack_per_group
from cellmd.quant.scales import decode_scales
from cellmd.quant.schemes import groups_of
from cellmd.quant.tensor import PackedTensor

_BLOCK_WEIGHTS = 1 << 20
"""Weights decoded at once: temporaries stay small beside the result."""


def decode(packed: PackedTensor) -> np.ndarray:
    """The whole tensor, float32 in its own shape."""
    if not packed.coding.quantised:
        return floats.decode(packed.data, packed.coding.dtype).reshape(packed.shape)
    n_rows, n_columns = packed.shape
    values = np.empty(packed.shape, np.float32)
    step = max(16, _BLOCK_WEIGHTS // n_columns // 16 * 16)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        _decode_matrix(packed, rows, values[rows])
    return values


def decode_rows(packed: PackedTensor, rows: Rows) -> np.ndarray:
    """Some rows (positions of the first axis), float32 (R, ...).

    rows: a slice of step 1, or integer indices (R,), not negative. Reads no other rows: of a `row` layout exactly their
    bytes, of `tile16` the cache lines they lie in.
    """
    n_rows = packed.shape[0]
    rows = slice(*rows.indices(n_rows)[:2]) if isinstance(rows, slice) else np.asarray(rows)
    if not packed.coding.quantised:
        stored = packed.data.view(floats.STORED[packed.coding.dtype]).reshape(packed.shape)
        return floats.from_stored(stored[rows], packed.coding.dtype)
    count = max(0, rows.stop - rows.start) if isinstance(rows, slice) else len(rows)
    values = np.empty((count, packed.shape[1]), np.float32)
    if count:
        _decode_matrix(packed, rows, values)
    return values


def codes_of(packed: PackedTensor, rows: Rows) -> np.ndarray:
    """Integer codes of some rows of a quantised tensor: int8 (R, K). rows: as in `decode_rows`, a slice with bounds."""
    n_rows, n_columns = packed.shape
    return unpack(packed.data, (n_rows, n_columns), packed.coding.dtype, packed.coding.layout, rows)


def scales_of(packed: PackedTensor, rows: Rows) -> np.ndarray:
    """Decoded scales of some rows of a quantised tensor: float32 (R, G)."""
    coding, n_rows = packed.coding, packed.shape[0]
    assert packed.scales is not None
    assert coding.scale_dtype is not None
    stored = unpack_per_group(packed.scales, (n_rows, groups_of(packed.shape[1], coding)), coding.layout, rows)
    factors = None if packed.row_factors is None else packed.row_factors[rows]
    return decode_scales(stored, coding.scale_dtype, factors)


def _decode_matrix(packed: PackedTensor, rows: Rows, out: np.ndarray) -> None:
    codes, scales = codes_of(packed, rows), scales_of(packed, rows)
    n_rows, n_columns = out.shape
    n_groups, group = scales.shape[1], packed.coding.group_size or n_columns
    if n_columns == n_groups * group:
        grouped = codes.reshape(n_rows, n_groups, group)
        np.multiply(grouped, scales[..., None], out=out.reshape(grouped.shape))
    else:
        np.multiply(codes, np.repeat(scales, group, axis=1)[:, :n_columns], out=out)
