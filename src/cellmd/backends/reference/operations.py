"""The operations on rows, in the order of `backends/ops.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellmd.backends.ops import Clip, Ops, Tensor
from cellmd.backends.reference import attention as attend
from cellmd.backends.reference.weights import Budget, Weights
from cellmd.errors import ArgumentError
from cellmd.quant.tensor import PackedTensor

F32 = np.float32


class ReferenceOps(Ops):
    """A NumPy array is the tensor, `Weights` the matrix, `attention.Cache` the cache."""

    name = "reference"

    def __init__(self) -> None:
        self._budget = Budget()

    # ---- memory ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Every result owns its memory here, so nothing is overwritten."""

    def matrix(self, packed: PackedTensor, *, clip: Clip | None = None, bias: PackedTensor | None = None) -> Weights:
        return Weights(packed, self._budget, clip=clip, bias=None if bias is None else self.array(bias))

    def table(self, packed: PackedTensor) -> Weights:
        return Weights(packed, self._budget)

    def rows_of(self, matrix: Weights, start: int, stop: int) -> Weights:
        return matrix.slice(start, stop)

    def array(self, packed: PackedTensor) -> Tensor:
        return Weights(packed, self._budget).all_values()

    def ints(self, values: Sequence[int]) -> Tensor:
        return np.array(values, dtype=np.int32)

    def floats(self, values: Any) -> Tensor:
        return np.array(values, dtype=F32)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return np.zeros(shape, dtype=F32)

    def keep(self, x: Tensor) -> Tensor:
        return x.copy()

    def to_numpy(self, x: Tensor) -> Tensor:
        return x.copy()

    # ---- rows -----------------------------------------------------------------------------------------------------

    def embed(self, table: Weights, ids: Tensor, scale: float, start: int = 0, stop: int | None = None) -> Tensor:
        return table.gather(ids, start, table.n_columns if stop is None else stop) * F32(scale)

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def put_rows_(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        x[rows] = values
        return x

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape(shape)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        return x[:, start:stop]

    # ---- dense ----------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, matrix: Weights) -> Tensor:
        if matrix.clip is not None:
            x = self.clamp(x, matrix.clip[0], matrix.clip[1])
        y = np.empty((x.shape[0], matrix.n_rows), dtype=F32)
        for start, stop, values in matrix.blocks():
            np.matmul(x, values.T, out=y[:, start:stop])
        if matrix.bias is not None:
            y += matrix.bias
        if matrix.clip is not None:
            y = self.clamp(y, matrix.clip[2], matrix.clip[3])
        return y

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=F32)
        y = x * (F32(1) / np.sqrt(mean_square + F32(eps)))
        return y if weight is None else y * weight

    def layer_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        centred = x - np.mean(x, axis=-1, keepdims=True, dtype=F32)
        variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=F32)
        return centred * (F32(1) / np.sqrt(variance + F32(eps))) * weight

    # ---- elementwise ----------------------------------------------------------------------------------------------

    def add_(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        x += y if factor == 1.0 else y * F32(factor)
        return x

    def scale_(self, x: Tensor, factor: float) -> Tensor:
        x *= F32(factor)
        return x

    def affine(self, x: Tensor, factor: Tensor | float, offset: Tensor | float) -> Tensor:
        return (x + _operand(offset)) * _operand(factor)

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        return np.clip(x, F32(low), F32(high))

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        inner = F32(np.sqrt(2 / np.pi)) * (gate + F32(0.044715) * gate * gate * gate)
        return F32(0.5) * gate * (F32(1) + np.tanh(inner)) * up

    def silu(self, x: Tensor) -> Tensor:
        return x * _sigmoid(x)

    def glu(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return x[:, :half] * _sigmoid(x[:, half:])

    def relu(self, x: Tensor) -> Tensor:
        return np.maximum(x, F32(0))

    def softcap_(self, x: Tensor, cap: float) -> Tensor:
        x /= F32(cap)
        np.tanh(x, out=x)
        x *= F32(cap)
        return x

    # ---- positions and attention ----------------------------------------------------------------------------------

    def rope_table(
        self, positions: Tensor, base: float, rotary_dim: int, head_dim: int, stretch: float = 1.0
    ) -> Tensor:
        exponents = np.arange(0, rotary_dim, 2, dtype=F32) / F32(head_dim)
        powers = np.power(np.float64(base), exponents.astype(np.float64)).astype(F32)
        angles = positions.astype(F32)[:, None] * (F32(1) / powers / F32(stretch))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def rope(self, x: Tensor, table: Tensor) -> Tensor:
        half, turning = x.shape[2] // 2, table.shape[2]
        cos, sin = table[:, None, 0], table[:, None, 1]
        a, b = x[:, :, :turning], x[:, :, half : half + turning]
        y = x.copy()
        y[:, :, :turning] = a * cos - b * sin
        y[:, :, half : half + turning] = b * cos + a * sin
        return y

    def rope_2d(self, x: Tensor, table_x: Tensor, table_y: Tensor) -> Tensor:
        half = x.shape[2] // 2
        return np.concatenate([self.rope(x[:, :, :half], table_x), self.rope(x[:, :, half:], table_y)], axis=2)

    def new_cache(self, n_slots: int, capacity: int, n_kv_heads: int, head_dim: int) -> attend.Cache:
        return attend.Cache(n_slots, capacity, n_kv_heads, head_dim)

    def copy_slot_(self, cache: attend.Cache, source: int, target: int, n: int) -> None:
        cache.copy(source, target, n)

    def cache_form(self) -> str:
        return f"{self.name} float32"

    def export_slot(self, cache: attend.Cache, slot: int, n: int) -> Tensor:
        return cache.export(slot, n)

    def import_slot_(self, cache: attend.Cache, slot: int, n: int, exported: np.ndarray) -> None:
        cache.take(slot, n, exported)

    def append_(self, cache: attend.Cache, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> None:
        cache.append(keys, values, slots, positions)

    def attention(self, q: Tensor, cache: attend.Cache, slots: Tensor, positions: Tensor, window: int) -> Tensor:
        return attend.causal(q, cache, slots, positions, window)

    def attention_bidirectional(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend.bidirectional(q, k, v)

    def attention_relative(
        self, q: Tensor, k: Tensor, v: Tensor, relative_keys: Tensor, *, past: int, future: int, cap: float
    ) -> Tensor:
        return attend.relative(q, k, v, relative_keys, past=past, future=future, cap=cap)

    # ---- vocabulary -----------------------------------------------------------------------------------------------

    def top_k(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not 1 <= k <= logits.shape[1]:
            raise ArgumentError(f"the {k} largest of {logits.shape[1]} columns; 1..{logits.shape[1]} are possible")
        ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]  # what is not a number is sorted last
        return np.take_along_axis(logits, ids, axis=1), ids.astype(np.int32)

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        largest = logits.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite - infinite is no number, and e^-inf is 0
            return np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64)).astype(F32)

    # ---- convolution and pooling ----------------------------------------------------------------------------------

    def conv2d(self, x: Tensor, kernel: Tensor) -> Tensor:
        n_frames, n_bins, _ = x.shape
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        frames, bins = (n_frames + 1) // 2, (n_bins + 1) // 2
        y = np.zeros((frames, bins, kernel.shape[0]), dtype=F32)
        for row in range(3):
            for column in range(3):
                seen = padded[row : row + 2 * frames - 1 : 2, column : column + 2 * bins - 1 : 2]
                y += seen @ kernel[:, :, row, column].T
        return y

    def depthwise_conv1d(self, x: Tensor, kernel: Tensor) -> Tensor:
        width = kernel.shape[1]
        padded = np.pad(x, ((width - 1, 0), (0, 0)))
        y = np.zeros_like(x)
        for tap in range(width):
            y += padded[tap : tap + x.shape[0]] * kernel[:, tap]
        return y

    def pool_patches(self, x: Tensor, grid_width: int, size: int) -> Tensor:
        blocks = x.reshape(-1, size, grid_width // size, size, x.shape[1])
        return blocks.mean(axis=(1, 3), dtype=F32).reshape(-1, x.shape[1])


def _operand(value: Tensor | float) -> Tensor:
    return value if isinstance(value, np.ndarray) else F32(value)


def _sigmoid(x: Tensor) -> Tensor:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        return F32(1) / (F32(1) + np.exp(-x))
