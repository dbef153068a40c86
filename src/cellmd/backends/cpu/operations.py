"""The operations of `backends/ops.py`, each handed to the native module.

A tensor is a `_native.Tensor`. It owns its memory together with its views and gives it back, for the next tensor of
that size, when the last of them is dropped: nothing is overwritten while anybody holds it, and a decoding step
allocates nothing. The native side checks shapes, types and indices (ArgumentError; TypeError for a foreign type).

How far results may lie from `reference`:
- float matrices: float32 rounding.
- quantised matrices: the input is rounded to int8 first, with one scale for each row and each group of columns (the
  weights' own groups; 128 columns where a row of weights has one scale): x ~ q * absmax / 127. From there on products
  are exact within a group, and groups are added in float32.
- attention: keys and values are stored as `cache_dtype`; everything else is float32 rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from cellmd import _native
from cellmd.backends.ops import Ceilings, Clip, Matrix, Ops, Tensor
from cellmd.errors import ArgumentError
from cellmd.quant.decode import decode
from cellmd.quant.tensor import PackedTensor

CacheDtype = Literal["f16", "f32", "i8"]

_MOST_RECORDED_ROWS = 8

_CEILING_BYTES = 1 << 29
_CEILING_RUNS = 7
_CEILING_REPETITIONS = 1 << 20


class CpuOps(Ops):
    """See `cellmd.backends.cpu.create`, which makes one."""

    name = "cpu"

    def __init__(self, threads: int, cache_dtype: CacheDtype = "f16") -> None:
        self._native = _native.Context(threads)
        self._cache_dtype = cache_dtype
        self._tapes: WeakKeyDictionary[Any, dict[tuple[str, int], Any]] = WeakKeyDictionary()

    @property
    def threads(self) -> int:
        return int(self._native.threads)

    @property
    def instruction_set(self) -> str:
        """Name of the instruction set in use: the best the machine has, or what CELLMD_ISA says."""
        return str(self._native.instruction_set)

    def ceilings(self) -> Ceilings:
        """The best of several readings of memory far larger than any cache, and of multiplying registers."""
        memory = np.ones(_CEILING_BYTES, np.uint8)
        read_s = min(self._native.time_read(memory) for _ in range(_CEILING_RUNS))
        multiplied = (self._native.time_multiply(_CEILING_REPETITIONS) for _ in range(_CEILING_RUNS))
        return Ceilings(_CEILING_BYTES / read_s, max(macs / seconds for macs, seconds in multiplied))

    def read_rate(self, stored: Sequence[np.ndarray]) -> float:
        read_bytes = sum(each.nbytes // 4096 * 4096 for each in stored)
        seconds = min(sum(self._native.time_read(_bytes(each)) for each in stored) for _ in range(_CEILING_RUNS))
        return float(read_bytes / seconds)

    # ---- work that comes again ------------------------------------------------------------------------------------

    def replay(self, key: object, name: str, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """Of few rows, for which Python's share of the time is worth saving."""
        n_rows = inputs[0].shape[0]
        if n_rows > _MOST_RECORDED_ROWS:
            return function(*inputs)
        tapes = self._tapes.setdefault(key, {})
        if (name, n_rows) in tapes:
            tape = tapes[name, n_rows]
            return function(*inputs) if tape is None else tape.play(self._native, tuple(inputs))
        results, tapes[name, n_rows] = self._native.record(function, tuple(inputs))
        return results

    # ---- memory ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Memory that two passes in a row had no use for goes back to the system."""
        self._native.begin()

    def matrix(self, packed: PackedTensor, *, clip: Clip | None = None, bias: PackedTensor | None = None) -> Matrix:
        n_rows = 1
        for size in packed.shape[:-1]:
            n_rows *= size
        return _native.bind_matrix(
            n_rows,
            packed.shape[-1],
            packed.coding.dtype,
            packed.coding.layout,
            packed.coding.scale_dtype,
            packed.coding.group_size,
            _bytes(packed.data),
            None if packed.scales is None else _bytes(packed.scales),
            packed.row_factors,
            clip,
            None if bias is None else decode(bias),
            None if packed.place is None else (packed.place.file.descriptor, packed.place.offset),
            packed,
        )

    def table(self, packed: PackedTensor) -> Matrix:
        return self.matrix(packed)

    def rows_of(self, matrix: Matrix, start: int, stop: int) -> Matrix:
        return matrix.rows(start, stop)

    def array(self, packed: PackedTensor) -> Tensor:
        return self.floats(decode(packed))

    def ints(self, values: Sequence[int]) -> Tensor:
        try:
            return self._native.ints(np.array(values, dtype=np.int32))
        except OverflowError as error:
            raise ArgumentError(f"an integer does not fit 32 bits: {error}") from error

    def floats(self, values: Any) -> Tensor:
        return self._native.floats(np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values)))

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return self._native.zeros(shape)

    def keep(self, x: Tensor) -> Tensor:
        return self._native.keep(x)

    def to_numpy(self, x: Tensor) -> np.ndarray:
        array: np.ndarray = x.numpy().copy()
        return array

    # ---- rows -----------------------------------------------------------------------------------------------------

    def embed(self, table: Matrix, ids: Tensor, scale: float, start: int = 0, stop: int | None = None) -> Tensor:
        return self._native.embed(table, ids, scale, start, stop)

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return self._native.take_rows(x, rows)

    def put_rows_(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        self._native.put_rows(x, rows, values)
        return x

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._native.reshape(x, shape)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        return self._native.columns(x, start, stop)

    # ---- dense ----------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        return self._native.linear(x, matrix)

    def linears(self, x: Tensor, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        return tuple(self._native.linears(x, None, None, 1.0, None, 0.0, matrices, 0.0))

    def norm_linears(self, x: Tensor, weight: Tensor, eps: float, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        return tuple(self._native.linears(x, None, None, 1.0, weight, eps, matrices, 0.0))

    def norm_geglu(self, x: Tensor, weight: Tensor, eps: float, gate: Matrix, up: Matrix) -> Tensor:
        return self._native.gated_linear(x, weight, eps, gate, up)

    def norm_logits(self, x: Tensor, weight: Tensor, eps: float, head: Matrix, cap: float) -> Tensor:
        return self._native.linears(x, None, None, 1.0, weight, eps, (head,), cap)[0]

    def add_norm_norm_linears_(
        self,
        x: Tensor,
        y: Tensor,
        closing: Tensor,
        scale: float,
        weight: Tensor,
        eps: float,
        matrices: Sequence[Matrix],
    ) -> tuple[Tensor, ...]:
        return tuple(self._native.linears(x, y, closing, scale, weight, eps, matrices, 0.0))

    def add_norm_norm_ffn_(
        self,
        x: Tensor,
        y: Tensor,
        closing: Tensor,
        weight: Tensor,
        eps: float,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
    ) -> Tensor:
        return self._native.gated_layer(x, y, closing, weight, eps, gate, up, down)

    def add_norm_gated_linear_(
        self, x: Tensor, y: Tensor, closing: Tensor, eps: float, gate: Matrix, up: Tensor, projection: Matrix
    ) -> Tensor:
        return self._native.gated_by(x, y, closing, eps, gate, up, projection)

    def norm_add_embed(
        self,
        x: Tensor,
        x_scale: float,
        weight: Tensor,
        eps: float,
        table: Matrix,
        ids: Tensor,
        table_scale: float,
        start: int,
        scale: float,
    ) -> Tensor:
        self._native.norm_add_embed(x, x_scale, weight, eps, table, ids, table_scale, start, scale)
        return x

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return self._native.rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._native.layer_norm(x, weight, eps)

    def add_norm_(self, x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: float = 1.0) -> Tensor:
        self._native.add_norm(x, y, weight, eps, scale)
        return x

    # ---- elementwise ----------------------------------------------------------------------------------------------

    def add_(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        self._native.add(x, y, factor)
        return x

    def scale_(self, x: Tensor, factor: float) -> Tensor:
        self._native.scale(x, factor)
        return x

    def affine(self, x: Tensor, factor: Tensor | float, offset: Tensor | float) -> Tensor:
        return self._native.affine(x, factor, offset)

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        return self._native.clamp(x, low, high)

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._native.geglu(gate, up)

    def silu(self, x: Tensor) -> Tensor:
        return self._native.silu(x)

    def glu(self, x: Tensor) -> Tensor:
        return self._native.glu(x)

    def relu(self, x: Tensor) -> Tensor:
        return self._native.clamp(x, 0.0, np.inf)

    def softcap_(self, x: Tensor, cap: float) -> Tensor:
        self._native.softcap(x, cap)
        return x

    # ---- positions and attention ----------------------------------------------------------------------------------

    def rope_table(
        self, positions: Tensor, base: float, rotary_dim: int, head_dim: int, stretch: float = 1.0
    ) -> Tensor:
        return self._native.rope_table(positions, base, rotary_dim, head_dim, stretch)

    def rope(self, x: Tensor, table: Tensor) -> Tensor:
        return self._native.rope(x, None, None, table)

    def norm_rope(self, x: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
        return self._native.rope(x, weight, eps, table)

    def rope_2d(self, x: Tensor, table_x: Tensor, table_y: Tensor) -> Tensor:
        return self._native.rope_2d(x, table_x, table_y)

    def new_cache(self, n_slots: int, capacity: int, n_kv_heads: int, head_dim: int) -> Any:
        return self._native.new_cache(n_slots, capacity, n_kv_heads, head_dim, self._cache_dtype)

    def position_bytes(self, n_kv_heads: int, head_dim: int) -> int:
        width = -(-head_dim // 16) * 16
        element, scale = {"f16": (2, 0), "f32": (4, 0), "i8": (1, 4)}[self._cache_dtype]
        return 2 * n_kv_heads * (element * width + scale)

    def copy_slot_(self, cache: Any, source: int, target: int, n: int) -> None:
        cache.copy(source, target, n)

    def cache_form(self) -> str:
        code = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()
        return f"{self.name} {self._cache_dtype} {self.instruction_set} {code}"

    def export_slot(self, cache: Any, slot: int, n: int) -> np.ndarray:
        exported = np.empty(cache.saved_bytes(n), np.uint8)
        cache.save(slot, n, exported)
        return exported

    def import_slot_(self, cache: Any, slot: int, n: int, exported: np.ndarray) -> None:
        cache.load(slot, n, exported)

    def append_(self, cache: Any, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> None:
        self._native.append(cache, keys, values, slots, positions)

    def append_normed_(
        self,
        cache: Any,
        keys: Tensor,
        values: Tensor,
        key_weight: Tensor,
        eps: float,
        table: Tensor,
        slots: Tensor,
        positions: Tensor,
    ) -> None:
        self._native.append_normed(cache, keys, values, key_weight, eps, table, slots, positions)

    def attention(self, q: Tensor, cache: Any, slots: Tensor, positions: Tensor, window: int) -> Tensor:
        return self._native.attention(q, cache, slots, positions, window)

    def attend_(
        self,
        cache: Any,
        q: Tensor,
        q_weight: Tensor,
        written: Sequence[Tensor],
        k_weight: Tensor | None,
        eps: float,
        table: Tensor,
        slots: Tensor,
        positions: Tensor,
        window: int,
        output: Matrix,
        *,
        apart: bool,
    ) -> Tensor:
        k, v = written or (None, None)
        return self._native.attend(cache, q, q_weight, k, v, k_weight, eps, table, slots, positions, window, output)

    def attention_bidirectional(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._native.attention_bidirectional(q, k, v)

    def attention_relative(
        self, q: Tensor, k: Tensor, v: Tensor, relative_keys: Tensor, *, past: int, future: int, cap: float
    ) -> Tensor:
        return self._native.attention_relative(q, k, v, relative_keys, past, future, cap)

    # ---- vocabulary -----------------------------------------------------------------------------------------------

    def top_k(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, ids = self._native.top_k(logits, k)
        return values, ids

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        return self._native.log_sum_exp(logits)

    # ---- convolution and pooling ----------------------------------------------------------------------------------

    def conv2d(self, x: Tensor, kernel: Tensor) -> Tensor:
        return self._native.conv2d(x, kernel)

    def depthwise_conv1d(self, x: Tensor, kernel: Tensor) -> Tensor:
        return self._native.depthwise_conv1d(x, kernel)

    def pool_patches(self, x: Tensor, grid_width: int, size: int) -> Tensor:
        return self._native.pool_patches(x, grid_width, size)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array: a view of the file stays one."""
    return array.reshape(-1).view(np.uint8)
