"""The operations with kernels of our own, in Triton, in place of what is slow in torch alone.

With one row (a step of one sequence) what lies between two products is done in the second: the closing of the residual
block before, x = (x + norm(y)) * scale, and the norm of x. With more rows it is done once, by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import triton

from cellmd.backends.cuda import attention as plain_attention
from cellmd.backends.cuda.attention import Cache, Ints
from cellmd.backends.cuda.graph import FEW_ROWS, MANY_ROWS
from cellmd.backends.cuda.kernels import attention as attend
from cellmd.backends.cuda.kernels import linear as few
from cellmd.backends.cuda.kernels import lookup, norms, towers
from cellmd.backends.cuda.kernels.guess import guess
from cellmd.backends.cuda.kernels.repack import repack_int4
from cellmd.backends.cuda.kernels.top_k import MOST, top_k
from cellmd.backends.cuda.kernels.turns import turns
from cellmd.backends.cuda.operations import CudaOps
from cellmd.backends.cuda.plain import DECODED_BYTES, TorchOps
from cellmd.backends.cuda.weights import DeviceMatrix, DeviceTable
from cellmd.backends.ops import Clip, Tensor

_FEW_ROWS = few.MOST_ROWS

_PART_ROWS = 16
"""A matrix is decoded in parts of a multiple of so many rows."""

_MOST_GATES = 1 << 23
"""Of a gated layer of many rows, as many outputs are float32 at a time: it takes the most memory of all."""

_ACTIVATIONS = torch.bfloat16
"""What is only multiplied next need not be float32 in between."""


class FusedOps(TorchOps):
    """On a GPU, or on the CPU in Triton's interpreter, where tests run it."""

    _repack = staticmethod(repack_int4)

    # ---- rows -----------------------------------------------------------------------------------------------------

    def embed(
        self, table: DeviceMatrix | DeviceTable, ids: Ints, scale: float, start: int = 0, stop: int | None = None
    ) -> Tensor:
        return lookup.embed(table, ids.device, scale, start, stop)

    def norm_add_embed(
        self,
        x: Tensor,
        x_scale: float,
        weight: Tensor,
        eps: float,
        table: DeviceTable | DeviceMatrix,
        ids: Ints,
        table_scale: float,
        start: int,
        scale: float,
    ) -> Tensor:
        return lookup.per_layer_inputs(x, x_scale, weight, eps, table, ids.device, table_scale, start, scale)

    # ---- dense ----------------------------------------------------------------------------------------------------

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        norm = towers.norm_heads if x.ndim == 3 else norms.rms_norm
        return norm(x.contiguous(), weight, eps)

    def add_norm_(self, x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: float = 1.0) -> Tensor:
        norms.add_norm_(x, y.contiguous(), weight, eps, scale)
        return x

    def _operand(self, x: Tensor, clip: Clip | None) -> Tensor:
        return super()._operand(x, clip) if clip is None else towers.clamp(x, *clip[:2], self._products)

    def _product(self, x: Tensor, matrix: DeviceMatrix) -> Tensor:
        if matrix.bits != 4 or x.dtype != torch.bfloat16:
            return super()._product(x, matrix)
        n_rows, n_columns = matrix.shape
        step = max(_PART_ROWS, DECODED_BYTES // (2 * n_columns) // _PART_ROWS * _PART_ROWS)
        parts = [matrix.rows(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
        products = [torch.mm(x, lookup.decoded(part).t(), out_dtype=torch.float32) for part in parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=1)

    def linear(self, x: Tensor, matrix: DeviceMatrix) -> Tensor:
        if not _takes(x, matrix):
            return super().linear(x, matrix)
        return few.linear(x.contiguous(), (matrix,))[0]

    def last_linear(self, x: Tensor, matrix: DeviceMatrix) -> Tensor:
        if not _takes(x, matrix):
            return super().last_linear(x, matrix)
        return few.open_linear(x.contiguous(), matrix)

    def linears(self, x: Tensor, matrices: Sequence[DeviceMatrix]) -> tuple[Tensor, ...]:
        if not _takes(x, *matrices):
            return super().linears(x, matrices)
        return tuple(y for group in _alike(matrices) for y in few.linear(x.contiguous(), group))

    def norm_linears(
        self, x: Tensor, weight: Tensor, eps: float, matrices: Sequence[DeviceMatrix]
    ) -> tuple[Tensor, ...]:
        if not _fits_in_product(x, *matrices):
            return self.linears(norms.rms_norm(x, weight, eps, dtype=_ACTIVATIONS), matrices)
        groups = _alike(matrices)
        return tuple(y for group in groups for y in few.linear(x, group, norm_weight=weight, eps=eps))

    def norm_logits(self, x: Tensor, weight: Tensor, eps: float, head: DeviceMatrix, cap: float) -> Tensor:
        if not _fits_in_product(x, head):
            return super().norm_logits(x, weight, eps, head, cap)
        return few.linear(x, (head,), norm_weight=weight, eps=eps, cap=cap)[0]

    def add_norm_norm_linears_(
        self,
        x: Tensor,
        y: Tensor,
        closing: Tensor,
        scale: float,
        weight: Tensor,
        eps: float,
        matrices: Sequence[DeviceMatrix],
    ) -> tuple[Tensor, ...]:
        if not _fits_in_product(x, *matrices):
            normed = norms.add_norm_(x, y, closing, eps, scale, next_weight=weight, dtype=_ACTIVATIONS)
            return self.linears(normed, matrices)
        first, *others = _alike(matrices)
        residual = few.Residual(y, closing, x.new_empty(x.shape), scale)
        products = list(few.linear(x, first, norm_weight=weight, residual=residual, eps=eps))
        x.data = residual.out
        for group in others:
            products += few.linear(x, group, norm_weight=weight, eps=eps)
        return tuple(products)

    def norm_geglu(self, x: Tensor, weight: Tensor, eps: float, gate: DeviceMatrix, up: DeviceMatrix) -> Tensor:
        if _fits_in_product(x, gate, up) and few.alike((gate, up)):
            return few.geglu(x, gate, up, norm_weight=weight, eps=eps, dtype=_ACTIVATIONS)
        return self._geglu(norms.rms_norm(x, weight, eps, dtype=_ACTIVATIONS), gate, up)

    def add_norm_norm_geglu_(
        self, x: Tensor, y: Tensor, closing: Tensor, weight: Tensor, eps: float, gate: DeviceMatrix, up: DeviceMatrix
    ) -> Tensor:
        if not _fits_in_product(x, gate, up) or not few.alike((gate, up)):
            normed = norms.add_norm_(x, y, closing, eps, next_weight=weight, dtype=_ACTIVATIONS)
            return self._geglu(normed, gate, up)
        residual = few.Residual(y, closing, x.new_empty(x.shape))
        gated = few.geglu(x, gate, up, norm_weight=weight, residual=residual, eps=eps, dtype=_ACTIVATIONS)
        x.data = residual.out
        return gated

    def add_norm_gate_(self, x: Tensor, y: Tensor, closing: Tensor, eps: float, gate: DeviceMatrix, up: Tensor) -> Any:
        if _fits_in_product(x, gate):
            residual = few.Residual(y, closing, x.new_empty(x.shape))
            gated = few.geglu(x, gate, up, residual=residual, eps=eps, dtype=_ACTIVATIONS)
            x.data = residual.out
            return gated
        self.add_norm_(x, y, closing, eps)
        if _takes(x, gate):
            return few.geglu(x, gate, up, dtype=_ACTIVATIONS)
        gated = torch.empty_like(up, dtype=_ACTIVATIONS, memory_format=torch.contiguous_format)
        towers.geglu_into(gated, self.linear(x, gate), up)
        return gated

    def _geglu(self, x: Tensor, gate: DeviceMatrix, up: DeviceMatrix) -> Tensor:
        if _takes(x, gate, up) and few.alike((gate, up)):
            return few.geglu(x, gate, up, dtype=_ACTIVATIONS)
        n_rows, n_outputs = x.shape[0], gate.shape[0]
        gated = x.new_empty((n_rows, n_outputs), dtype=_ACTIVATIONS)
        step = triton.cdiv(n_outputs, triton.cdiv(n_rows * n_outputs, _MOST_GATES))
        step = triton.cdiv(step, _PART_ROWS) * _PART_ROWS
        for start in range(0, n_outputs, step):
            part = slice(start, min(start + step, n_outputs))
            halves = (matrix.rows(part.start, part.stop) for matrix in (gate, up))
            towers.geglu_into(gated[:, part], *(self.linear(x, half) for half in halves))
        return gated

    # ---- positions and attention ----------------------------------------------------------------------------------

    def rope_table(self, positions: Ints, base: float, rotary_dim: int, head_dim: int, stretch: float = 1.0) -> Tensor:
        return turns(positions.device, self._frequencies_of(base, rotary_dim, head_dim, stretch))

    def norm_rope_2d(self, x: Tensor, weight: Tensor, eps: float, table_x: Tensor, table_y: Tensor) -> Tensor:
        return towers.norm_turn_2d(x, weight, eps, table_x, table_y, _ACTIVATIONS)

    def norm_rope(self, x: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
        return norms.turn_and_append_(x, None, None, weight, None, eps, table, None, None, None)

    def append_normed_(
        self,
        cache: Cache,
        keys: Tensor,
        values: Tensor,
        key_weight: Tensor,
        eps: float,
        table: Tensor,
        slots: Ints,
        positions: Ints,
    ) -> None:
        memory = cache.keys, cache.values, cache.capacity
        at = slots.device, positions.device
        norms.turn_and_append_(None, keys, values, None, key_weight, eps, table, memory, *at)

    def norm_rope_append_(
        self,
        q: Tensor,
        q_weight: Tensor,
        cache: Cache,
        keys: Tensor,
        values: Tensor,
        key_weight: Tensor,
        eps: float,
        table: Tensor,
        slots: Ints,
        positions: Ints,
    ) -> Tensor:
        memory = cache.keys, cache.values, cache.capacity
        at = slots.device, positions.device
        weights = q_weight, key_weight
        return norms.turn_and_append_(q, keys, values, *weights, eps, table, memory, *at, dtype=_ACTIVATIONS)

    def attention(self, q: Tensor, cache: Cache, slots: Ints, positions: Ints, window: int) -> Tensor:
        attention = attend.decode_attention if q.shape[0] <= _FEW_ROWS else attend.prefill_attention
        at = slots.device, positions.device
        return attention(q, cache.keys, cache.values, cache.capacity, *at, window, dtype=_ACTIVATIONS)

    def attend_(
        self,
        cache: Cache,
        q: Tensor,
        q_weight: Tensor,
        written: Sequence[Tensor],
        k_weight: Tensor | None,
        eps: float,
        table: Tensor,
        slots: Ints,
        positions: Ints,
        window: int,
        output: DeviceMatrix,
        *,
        apart: bool,
    ) -> Tensor:
        if not apart or not _takes(q, output):
            products = cache, q, q_weight, written, k_weight, eps, table
            return super().attend_(*products, slots, positions, window, output, apart=apart)
        k, v = written or (None, None)
        attended = attend.decode_attention(
            q,
            *(cache.keys, cache.values, cache.capacity, slots.device, positions.device, window),
            raw=attend.Raw(q_weight, table, eps, k, v, k_weight),
            joined=not few.joins(q.shape[0], q.shape[2]),
            dtype=_ACTIVATIONS,
        )
        whole = attended if isinstance(attended, attend.Shares) else attended.view(q.shape[0], -1)
        return few.open_linear(whole, output)

    def attention_bidirectional(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain_attention.bidirectional(q, k, v, self._products)

    def attention_relative(
        self, q: Tensor, k: Tensor, v: Tensor, relative_keys: Tensor, *, past: int, future: int, cap: float
    ) -> Tensor:
        return towers.relative_attention(q, k, v, relative_keys, past=past, future=future, cap=cap, dtype=_ACTIVATIONS)

    # ---- convolution ------------------------------------------------------------------------------------------------

    def depthwise_conv1d(self, x: Tensor, kernel: Tensor) -> Tensor:
        return towers.depthwise_conv1d(x, kernel)

    # ---- vocabulary -----------------------------------------------------------------------------------------------

    def top_k(self, logits: Tensor, k: int) -> tuple[Tensor, Ints]:
        if not 1 <= k <= min(MOST, logits.shape[1]):
            return super().top_k(logits, k)
        values, ids = top_k(logits, k)
        return values, Ints(self.device, device=ids)

    def guess(self, values: Tensor, ids: Ints, *how: Ints) -> tuple[Ints, Ints]:
        chosen, report = guess(values, ids.device, [each.device for each in how])
        return Ints(self.device, device=chosen), Ints(self.device, device=report)


class FusedCudaOps(CudaOps, FusedOps):
    """See `cellmd.backends.cuda.create`, which makes one where Triton is installed."""

    recorded_rows = (*FEW_ROWS, *MANY_ROWS)

    def __init__(self, device: str | torch.device = "cuda", *, tables_on_device: bool = False) -> None:
        super().__init__(device, tables_on_device=tables_on_device)
        threading.Thread(target=self._start, name="cellmd-start").start()

    def _start(self) -> None:
        """What first calls wait for, done while weights are bound: Triton, cuBLAS, and code of torch's."""
        x = torch.zeros((16, 16), device=self.device)
        norms.rms_norm(x, None, 1.0)
        torch.mm(x.to(self._products), x.to(self._products), out_dtype=torch.float32)
        x.index_select(0, torch.zeros(1, dtype=torch.int32, device=self.device))


def _takes(x: Tensor, *matrices: DeviceMatrix) -> bool:
    """Whether the kernels for few rows take these."""
    return x.shape[0] <= _FEW_ROWS and all(few.alike((matrix,)) for matrix in matrices)


def _fits_in_product(x: Tensor, *matrices: DeviceMatrix) -> bool:
    """Whether x can be normed, and the block before it closed, in the product itself."""
    return x.shape[0] == 1 and few.fits_one_step(x.shape[1]) and _takes(x, *matrices)


def _alike(matrices: Sequence[DeviceMatrix]) -> list[list[DeviceMatrix]]:
    """Neighbours that one launch can take, in order."""
    groups: list[list[DeviceMatrix]] = []
    for matrix in matrices:
        if groups and few.alike((*groups[-1], matrix)):
            groups[-1].append(matrix)
        else:
            groups.append([matrix])
    return groups
