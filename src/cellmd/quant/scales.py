"""How scales become stored numbers. Quantisers always work with the scale as it will be read, not as they wished it.

f16, bf16, f32   the number itself, which may be negative
u8               a code 0 .. 255; scale = code * row_factor, with one float32 factor a row; never negative
"""

from __future__ import annotations

import numpy as np

from cellmd.quant.floats import from_stored, to_stored
from cellmd.quant.tensor import ScaleDtype

U8_STEPS = 255
_SMALLEST_F16 = np.float32(2.0**-24)


def encode_scales(scales: np.ndarray, dtype: ScaleDtype, *, round_up: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 (N, G) -> stored scales (N, G) and row factors float32 (N,), None unless dtype is "u8".

    A scale that is not 0 never becomes 0. The row factor is the largest scale of its row over 255. round_up: a code of
    u8 is rounded up, for quantisers that must not clip. A scale beyond the type's range becomes infinite: see
    `schemes.encode_block`, which refuses it.
    """
    if dtype == "u8":
        factors = scales.max(axis=1) / np.float32(U8_STEPS)
        steps = scales * np.divide(1, factors, out=np.zeros_like(factors), where=factors > 0)[:, None]
        # A scale that lies on a step but for float32 rounding stays on it.
        codes = np.ceil(steps - np.float32(1e-4)) if round_up else np.rint(steps)
        codes = np.clip(codes, scales > 0, U8_STEPS)
        return codes.astype(np.uint8), factors
    if dtype == "f16":
        lost = (np.abs(scales) < _SMALLEST_F16) & (scales != 0)
        scales = np.where(lost, np.copysign(_SMALLEST_F16, scales), scales)
    return to_stored(scales, dtype), None


def decode_scales(stored: np.ndarray, dtype: ScaleDtype, row_factors: np.ndarray | None) -> np.ndarray:
    """Stored scales (N, G), row factors (N,) or None -> float32 (N, G)."""
    if row_factors is None:
        return from_stored(stored, dtype)
    scales: np.ndarray = stored.astype(np.float32) * row_factors[:, None]
    return scales
