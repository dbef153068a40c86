"""Float codings: f32, f16, and bf16 as its 16 bits, since NumPy has no such type.

Everything is stored little-endian, whatever the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cellmd.errors import CheckpointError

STORED: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "i8": np.dtype("i1"),
}
"""NumPy type of each stored number type; bf16 by its bits."""


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 numbers, any shape -> the same numbers in float32 (exact)."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """float32, any shape -> uint16 bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():  # rounding could carry a NaN's bits over into a number
        nearest = np.where(nan, np.uint16(0x7FC0), nearest)
    return nearest.reshape(np.shape(values))


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the array that is stored: float32, float16, or uint16 bits of bf16; same shape.

    Numbers beyond a type's range become infinite; `encode` refuses them.
    """
    if dtype == "bf16":
        return f32_to_bf16(values)
    with np.errstate(over="ignore"):
        return values.astype(STORED[dtype])


def from_stored(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `to_stored`: float32 in the same shape."""
    return bf16_to_f32(stored) if dtype == "bf16" else stored.astype(np.float32)


def encode(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """float32, any shape -> uint8 (n_bytes,), the numbers one after another in row-major order.

    A tensor of one number may be infinite (bounds of clipped layers are); every other number must be finite and within
    the type's range. Raises CheckpointError naming the tensor.
    """
    stored = to_stored(values, dtype)
    if not np.isfinite(values).all() and (values.size != 1 or np.isnan(values).any()):
        raise CheckpointError(f"tensor {name!r} holds NaN or infinite values; the checkpoint is damaged")
    if values.size != 1 and not np.isfinite(from_stored(stored, dtype)).all():
        largest = float(np.abs(values).max())
        raise CheckpointError(
            f"tensor {name!r} holds {largest:g}, beyond the range of {dtype}; store it as bf16 or f32"
        )
    return np.ascontiguousarray(stored).reshape(-1).view(np.uint8)


def decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """uint8 (n_bytes,) -> float32 (n,)."""
    return from_stored(data.view(STORED[dtype]), dtype)
