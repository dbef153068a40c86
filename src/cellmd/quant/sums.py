"""Sums in float32 whose order is part of the format, so that a checkpoint gives the same file on every machine.

Within a group, column k is added to lane k % 16, and the lanes are then joined by halves: 8 and 8, 4 and 4, 2 and 2, 1
and 1. That is how vectors of 16, 8 or 4 numbers all add, and NumPy's own sums depend on the processor.
"""

from __future__ import annotations

import numpy as np

LANES = 16


def lane_sums(values: np.ndarray) -> np.ndarray:
    """float32 (..., g) -> (...)."""
    n_columns = values.shape[-1]
    lanes = np.zeros((*values.shape[:-1], LANES), np.float32)
    for start in range(0, n_columns, LANES):
        part = values[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def running_sum(values: np.ndarray) -> float:
    """float32, any shape but an empty one -> the sum in float64, one after another."""
    return float(np.add.accumulate(values.reshape(-1), dtype=np.float64)[-1])
