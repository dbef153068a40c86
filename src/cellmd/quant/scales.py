"""How scales become stored numbers. Quantisers always work with the scale as it will be read, not as they wished it.

A scale may be negative: int4 codes reach to -8 and to 7, so its sign says on which side they reach further.

f16, bf16, f32   the number itself
i8               a code -128 .. 127; scale = code * row_factor, with one float32 factor a row
"""

from __future__ import annotations

import numpy as np

from cellmd.quant.floats import from_stored, to_stored
from cellmd.quant.tensor import ScaleDtype

_STEPS = 127
_SMALLEST_F16 = np.float32(2.0**-24)

_REACH = np.float32(1 + 1 / 256)
"""A scale that must reach the largest weight may fall short of it by this much: less than half a step of int8."""


def encode_scales(scales: np.ndarray, dtype: ScaleDtype, *, must_reach: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 (N, G) -> stored scales (N, G) and row factors float32 (N,), None unless dtype is "i8".

    The nearest number that can be stored, but never 0 for a scale that is not. The row factor is the largest scale of
    its row, in magnitude, over 127. must_reach: the next larger number where the nearest is too small, for scales that
    must not clip; none of those is negative. A scale beyond the type's range becomes infinite: `encode_block` refuses
    it.
    """
    if dtype == "i8":
        magnitudes = np.abs(scales)
        factors = magnitudes.max(axis=1) / np.float32(_STEPS)
        steps = magnitudes * np.divide(1, factors, out=np.zeros_like(factors), where=factors > 0)[:, None]
        codes = np.clip(np.rint(steps), magnitudes > 0, _STEPS)
        if must_reach:
            codes += steps > codes * _REACH
        return np.copysign(codes, scales).astype(np.int8), factors
    if dtype == "f16":
        lost = (np.abs(scales) < _SMALLEST_F16) & (scales != 0)
        scales = np.where(lost, np.copysign(_SMALLEST_F16, scales), scales)
    stored = to_stored(scales, dtype)
    if must_reach and dtype == "f16":  # only its subnormal numbers lie that far apart
        short = scales > stored.astype(np.float32) * _REACH
        stored = np.where(short, np.nextafter(stored, np.float16(np.inf)), stored)
    return stored, None


def decode_scales(stored: np.ndarray, dtype: ScaleDtype, row_factors: np.ndarray | None) -> np.ndarray:
    """Stored scales (N, G), row factors (N,) or None -> float32 (N, G)."""
    if row_factors is None:
        return from_stored(stored, dtype)
    scales: np.ndarray = stored.astype(np.float32) * row_factors[:, None]
    return scales
