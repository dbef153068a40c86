"""Symmetric int8: w ~ scale * q, q in -128 .. 127. Precise enough that no scale needs searching."""

from __future__ import annotations

import numpy as np

LOW, HIGH = -128, 127


def choose_scales(weights: np.ndarray, extremes: tuple[np.ndarray, np.ndarray], *, search: bool = True) -> np.ndarray:
    """The scale of each group: the least that clips nothing, never negative.

    weights: float32 (R, G, g). extremes: the least and the largest weight of each group, (R, G).
    `search` is of no effect. Returns float32 (R, G).
    """
    low, high = extremes
    scales: np.ndarray = np.maximum(-low, high) / np.float32(HIGH)
    return scales
