"""Symmetric int4: w ~ scale * q, q in -8 .. 7, with the scale of each group searched for the least squared error.

Codes reach one step further below zero than above it. So the sign of a scale matters: with a scale of the opposite sign
to the group's largest weight in magnitude that weight takes the code -8, and all steps are 7 / 8 as wide. This, and a
scale that clips a few large weights to serve the many small ones, is what the search adds to rounding to nearest.

For fixed codes q the best scale is sum(w q) / sum(q q), and it leaves the error sum(w w) - sum(w q)^2 / sum(q q). So a
candidate is judged by its codes alone, and the winner's scale is that quotient. Weights that lie on a grid already are
found as they are (`grid.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cellmd.quant.grid import grid_scales

LOW, HIGH = -8, 7

_SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.62, 0.54)
"""Candidates for groups of at most 256 columns, as parts of the widest scale. Three times as many gain at most 0.1 dB
on Gaussian, Laplace and Student t (5 degrees) weights."""

_SHRINKS_OF_LONG_GROUPS = tuple(0.87**i for i in range(12))
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
    exact = grid_scales(weights, extremes)
    if exact is not None:
        return exact
    best_gain = np.full(low.shape, -1, np.float32)
    scales = np.zeros_like(widest)
    codes = np.empty_like(weights)
    for candidate in _candidates(weights.shape[-1], widest, extremes):
        inverse = np.divide(1, candidate, out=np.zeros_like(candidate), where=candidate != 0)
        np.multiply(weights, inverse[..., None], out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, LOW, HIGH, out=codes)
        product = np.einsum("rgk,rgk->rg", weights, codes)
        energy = np.maximum(np.einsum("rgk,rgk->rg", codes, codes), 1)  # at least 1 where a code is not 0
        quotient = product / energy
        gain = product * quotient
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(scales, quotient, where=better)
    return scales


def _candidates(group: int, widest: np.ndarray, extremes: tuple[np.ndarray, np.ndarray]) -> Iterator[np.ndarray]:
    for shrink in _SHRINKS if group <= _LONG_GROUP else _SHRINKS_OF_LONG_GROUPS:
        yield widest * np.float32(shrink)
    # Weights on a symmetric grid, -7 .. 7, are found as they are.
    yield np.maximum(-extremes[0], extremes[1]) / np.float32(HIGH)
