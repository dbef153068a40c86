"""Symmetric int4: w ~ scale * q, q in -8 .. 7, with the scale of each group searched for the least squared error.

Codes reach one step further below zero than above it. So the sign of a scale matters: with a scale of the opposite sign
to the group's largest weight in magnitude that weight takes the code -8, and all steps are 7 / 8 as wide. This, and a
scale that clips a few large weights to serve the many small ones, is what the search adds to rounding to nearest.

For fixed codes q the best scale is sum(w q) / sum(q q), and it leaves the error sum(w w) - sum(w q)^2 / sum(q q). So a
candidate is judged by its codes alone, and the winner's scale is that quotient. Weights that lie on a grid already are
found as they are (`grid.py`).
"""

from __future__ import annotations

import numpy as np

from cellmd.quant.grid import grid_scales
from cellmd.quant.sums import lane_sums

LOW, HIGH = -8, 7

_SHRINKS = np.array((1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.62, 0.54), np.float32)
"""Candidates for groups of at most 256 columns, as parts of the widest scale. Three times as many gain at most 0.1 dB
on Gaussian, Laplace and Student t (5 degrees) weights."""

_SHRINKS_OF_LONG_GROUPS = np.array([0.87**i for i in range(12)], np.float32)
"""The longer a group, the further out its largest weight, and the more there is to clip."""

_LONG_GROUP = 256


def choose_scales(weights: np.ndarray, extremes: tuple[np.ndarray, np.ndarray], *, search: bool = True) -> np.ndarray:
    """The scale of each group.

    weights: float32 (R, G, g). extremes: the least and the largest weight of each group, (R, G).
    search False: the widest scale, which clips nothing but what lies within a step beyond 7 opposite to the largest
    weight.
    Returns float32 (R, G), 0 for groups of zeros.
    """
    low, high = extremes
    widest = np.where(-low > high, low, high) / np.float32(LOW)
    if not search:
        return widest
    scales, on_grid = grid_scales(weights, extremes)
    rest = ~on_grid
    if rest.any():
        scales[rest] = _searched(weights[rest], widest[rest], np.maximum(-low, high)[rest])
    return scales


def shrinks(group: int) -> np.ndarray:
    """Parts of the widest scale that are tried for groups of this many columns, float32, in this order."""
    return _SHRINKS if group <= _LONG_GROUP else _SHRINKS_OF_LONG_GROUPS


def _searched(weights: np.ndarray, widest: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The scales of least error of groups (R, G, g), of whose widest scales and largest magnitudes (R, G)."""
    # Weights on a symmetric grid, -7 .. 7, are found as they are by the last candidate.
    candidates = [*(widest * shrink for shrink in shrinks(weights.shape[-1])), largest / np.float32(HIGH)]
    best_gain = np.full(widest.shape, -1, np.float32)
    scales = np.zeros_like(widest)
    codes = np.empty_like(weights)
    for candidate in candidates:
        inverse = np.divide(1, candidate, out=np.zeros_like(candidate), where=candidate != 0)
        np.multiply(weights, inverse[..., None], out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, LOW, HIGH, out=codes)
        product = lane_sums(weights * codes)
        energy = np.maximum(lane_sums(np.square(codes, out=codes)), 1)  # at least 1 where a code is not 0
        quotient = product / energy
        gain = product * quotient
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(scales, quotient, where=better)
    return scales
