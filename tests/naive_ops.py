"""The operations once more, in float64 and as literally as the contract states them, to hold backends against.

And the bound they are held to: a float32 result may be off by a few roundings of the largest number that went into it.
"""

from __future__ import annotations

import math

import numpy as np

from cellmd.quant.tensor import Coding, PackedTensor

EPS = float(np.finfo(np.float32).eps)


def packed(values: np.ndarray, name: str = "w") -> PackedTensor:
    """A float32 tensor as a file would hold it."""
    values = np.asarray(values, np.float32)
    return PackedTensor(name, values.shape, Coding("f32"), np.frombuffer(values.tobytes(), np.uint8))


def assert_close(got: np.ndarray, want: np.ndarray, scale: np.ndarray | float, roundings: float = 8) -> None:
    """|got - want| <= roundings * eps * scale, where scale is the size of what was added up to make `want`."""
    assert got.dtype == np.float32
    assert got.shape == want.shape
    error = np.abs(got.astype(np.float64) - want)
    worst = np.max(error / (EPS * np.maximum(scale, np.finfo(np.float32).tiny)), initial=0.0)
    assert worst <= roundings, f"off by {worst:.1f} roundings"


def as_int8(x: np.ndarray, group: int) -> np.ndarray:
    """x (N, K) as the native backend takes it to quantised weights: int8 with one scale for each `group` columns."""
    out = np.empty(x.shape, np.float64)
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group]
        largest = np.abs(part).max(axis=1, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        out[:, start : start + group] = np.rint(part * inverse) * (largest.astype(np.float64) / 127)
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def rope(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x (N, H, hd), angles (N, r / 2)."""
    y = x.copy()
    half = x.shape[2] // 2
    for i in range(angles.shape[1]):
        cos, sin = np.cos(angles[:, i])[:, None], np.sin(angles[:, i])[:, None]
        y[:, :, i] = x[:, :, i] * cos - x[:, :, i + half] * sin
        y[:, :, i + half] = x[:, :, i + half] * cos + x[:, :, i] * sin
    return y


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attention_row(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """q (H, hd) over the seen keys and values (T, Hkv, hd) -> (H, hd)."""
    readers = q.shape[0] // keys.shape[1]
    heads = [softmax(keys[:, h // readers] @ q[h]) @ values[:, h // readers] for h in range(q.shape[0])]
    return np.stack(heads)
