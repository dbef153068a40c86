"""Weights of quantisation-aware training: they lie on a grid already, scale * q in every group, and need only be read.

Such checkpoints are published in floating point, so each product has been rounded once more, to bfloat16 as a rule.
"""

from __future__ import annotations

import numpy as np

from cellmd.quant.sums import lane_sums

_STEPS = range(1, 9)
"""What the code of a group's largest weight can be."""

_HIGH = 7

_TOLERANCE = np.float32(2.0**-6)
"""Relative: bfloat16 rounds the weight by up to 2^-8, and the group's largest, which gives the scale, as much; twice
that to be safe. A code of 8 is then off by 1 / 8. That 31 more weights are so near to integers by chance does not
happen."""

_ROUNDING = np.float32(2.0**-20)
"""Of the sums that a scale is found by."""

_FLOAT16_MAX = np.float32(65504)

_NEGLIGIBLE = np.float32(2.0**-100)
"""Reciprocals of smaller scales would leave float32; such groups are stored as zeros."""


def grid_scales(weights: np.ndarray, extremes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The scale of each group, and which rows lie on a grid of int4 codes with every group.

    weights: float32 (R, G, g), finite. extremes: least and largest weight of each group (R, G). Returns float32 (R, G),
    0 for groups of zeros, and bool (R,); scales of other rows mean nothing.
    """
    scales = np.zeros(weights.shape[:2], np.float32)
    # The first group tells nearly always: that one lies on a grid by chance does not happen.
    on_grid: np.ndarray = np.all(_scales(weights[:, :1], (extremes[0][:, :1], extremes[1][:, :1]))[1], axis=1)
    if on_grid.any():
        scales[on_grid], found = _scales(weights[on_grid], (extremes[0][on_grid], extremes[1][on_grid]))
        on_grid[on_grid] = found.all(axis=1)
    return scales, on_grid


def _scales(weights: np.ndarray, extremes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scales float32 (R, G), and bool (R, G): whether a group lies on a grid."""
    least, most = extremes
    largest = np.where(-least > most, least, most)
    found = np.abs(largest) <= _NEGLIGIBLE
    certain = found.copy()
    scales = np.zeros_like(largest)
    for step in _STEPS:
        # Codes reach to -8: the largest weight takes it with a scale of the opposite sign.
        candidate = largest / np.float32(-step) if step == 8 else np.abs(largest) / np.float32(step)
        allowed = ~certain & (candidate != 0)
        if not allowed.any():
            continue
        inverse = np.divide(1, candidate, out=np.zeros_like(candidate), where=allowed)
        steps = weights * inverse[..., None]
        codes = np.rint(steps)
        on_grid = allowed & (np.abs(steps - codes) <= _TOLERANCE * np.abs(codes)).all(axis=-1)
        on_grid &= (codes <= _HIGH).all(axis=-1)  # of two opposite largest weights, one would be 8
        if not on_grid.any():
            continue
        energy, product = lane_sums(codes * codes), lane_sums(weights * codes)
        quotient = np.divide(product, energy, out=np.zeros_like(product), where=on_grid)
        # Codes with a common divisor lie on a coarser grid too; the scale that was used is a float16.
        as_float16 = np.clip(quotient, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        is_float16 = np.abs(quotient - as_float16) <= _ROUNDING * np.abs(quotient)
        better = on_grid & (~found | is_float16)
        np.copyto(scales, quotient, where=better)
        found |= on_grid
        certain |= on_grid & is_float16
    return scales, found
