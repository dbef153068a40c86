"""Convolutions of the audio tower, pooling of the vision tower."""

from __future__ import annotations

import numpy as np
import pytest

from cellmd.backends.ops import Ops
from naive_ops import assert_close, packed


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("n_frames", "n_bins", "n_in", "n_out"), [(1, 1, 1, 2), (7, 8, 1, 5), (6, 9, 3, 4), (2, 4, 5, 1)]
)
def test_conv2d(ops: Ops, rng: np.random.Generator, n_frames: int, n_bins: int, n_in: int, n_out: int) -> None:
    x, kernel = normal(rng, n_frames, n_bins, n_in), normal(rng, n_out, n_in, 3, 3)
    got = ops.to_numpy(ops.conv2d(ops.floats(x), ops.array(packed(kernel))))
    want = np.zeros(((n_frames + 1) // 2, (n_bins + 1) // 2, n_out))
    size = np.zeros_like(want)
    for t, f in np.ndindex(want.shape[:2]):
        for dt, df in np.ndindex(3, 3):
            row, column = 2 * t + dt - 1, 2 * f + df - 1
            if 0 <= row < n_frames and 0 <= column < n_bins:
                want[t, f] += kernel[:, :, dt, df].astype(np.float64) @ x[row, column]
                size[t, f] += np.abs(kernel[:, :, dt, df]) @ np.abs(x[row, column])
    assert_close(got, want, size)


@pytest.mark.parametrize(("n", "width"), [(1, 5), (3, 5), (20, 5), (20, 3), (4, 1)])
def test_depthwise_conv1d(ops: Ops, rng: np.random.Generator, n: int, width: int) -> None:
    x, kernel = normal(rng, n, 12), normal(rng, 12, width)
    got = ops.to_numpy(ops.depthwise_conv1d(ops.floats(x), ops.array(packed(kernel))))
    want = np.zeros((n, 12))
    for t in range(n):
        for j in range(width):
            if t - width + 1 + j >= 0:
                want[t] += kernel[:, j].astype(np.float64) * x[t - width + 1 + j]
    assert_close(got, want, np.abs(kernel).sum(1) * np.abs(x).max())


@pytest.mark.parametrize(("height", "width", "size"), [(3, 3, 3), (6, 9, 3), (4, 2, 2), (2, 3, 1)])
def test_pool_patches(ops: Ops, rng: np.random.Generator, height: int, width: int, size: int) -> None:
    x = normal(rng, height * width, 10)
    got = ops.to_numpy(ops.pool_patches(ops.floats(x), width, size))
    grid = x.reshape(height, width, 10).astype(np.float64)
    want = np.stack(
        [grid[r : r + size, c : c + size].mean((0, 1)) for r in range(0, height, size) for c in range(0, width, size)]
    )
    assert_close(got, want, np.abs(x).max())
