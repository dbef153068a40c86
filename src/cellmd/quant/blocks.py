"""Blocks of rows of a tensor that is stored already."""

from __future__ import annotations

import numpy as np

from cellmd.quant.decode import decode_rows
from cellmd.quant.encode import EncodedBlock
from cellmd.quant.error import ErrorStats
from cellmd.quant.schemes import sizes
from cellmd.quant.tensor import PackedTensor


def stored_block(packed: PackedTensor, start: int, source: np.ndarray) -> EncodedBlock:
    """Rows start .. start + len(source) of a quantised tensor as `encode_block` gives them, with their error.

    source: float32 (R, K). start, and in tile16 also the end unless it is the tensor's, is a multiple of 16.
    """
    stop = start + len(source)
    before, after = (sizes((row, packed.shape[1]), packed.coding) for row in (start, stop))
    scales = factors = None
    if packed.scales is not None:
        width = packed.scales.itemsize
        scales = packed.scales[before.scales // width : after.scales // width]
    if packed.row_factors is not None:
        width = packed.row_factors.itemsize
        factors = packed.row_factors[before.row_factors // width : after.row_factors // width]
    data = packed.data[before.data : after.data]
    return EncodedBlock(data, scales, factors, ErrorStats.of(decode_rows(packed, slice(start, stop)), source))
