"""The operations with kernels of our own, in Triton, in place of what is slow in torch alone.

With one row (a step of one sequence) what lies between two products is done in the second: the closing of the residual
block before, x = (x + norm(y)) * scale, and the norm of x. With more rows it is done once, by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellmd.backends.cuda.attention import Cache, Ints
from cellmd.backends.cuda.kernels import attention as attend
from cellmd.backends.cuda.kernels import linear as few
from cellmd.backends.cuda.operations import CudaOps
from cellmd.backends.cuda.weights import DeviceMatrix
from cellmd.backends.ops import Tensor

_FEW_ROWS = few.MOST_ROWS


class FusedOps(CudaOps):
    """See `cellmd.backends.cuda.create`, which makes one where Triton is installed."""

    # ---- dense ----------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, matrix: DeviceMatrix) -> Tensor:
        if not _takes(x, matrix):
            return super().linear(x, matrix)
        return few.linear(x.contiguous(), (matrix,))[0]

    def linears(self, x: Tensor, matrices: Sequence[DeviceMatrix]) -> tuple[Tensor, ...]:
        if not _takes(x, *matrices):
            return super().linears(x, matrices)
        return tuple(y for group in _alike(matrices) for y in few.linear(x.contiguous(), group))

    def norm_linears(
        self, x: Tensor, weight: Tensor, eps: float, matrices: Sequence[DeviceMatrix]
    ) -> tuple[Tensor, ...]:
        if not _fits_in_product(x, *matrices):
            return super().norm_linears(x, weight, eps, matrices)
        groups = _alike(matrices)
        return tuple(y for group in groups for y in few.linear(x, group, norm_weight=weight, eps=eps))

    def norm_geglu(self, x: Tensor, weight: Tensor, eps: float, gate: DeviceMatrix, up: DeviceMatrix) -> Tensor:
        if not _takes(x, gate, up) or not few.alike((gate, up)):
            return super().norm_geglu(x, weight, eps, gate, up)
        if _fits_in_product(x, gate, up):
            return few.geglu(x, gate, up, norm_weight=weight, eps=eps)
        return few.geglu(self.rms_norm(x, weight, eps), gate, up)

    def add_norm_norm_geglu_(
        self, x: Tensor, y: Tensor, closing: Tensor, weight: Tensor, eps: float, gate: DeviceMatrix, up: DeviceMatrix
    ) -> Tensor:
        if not _fits_in_product(x, gate, up) or not few.alike((gate, up)):
            return super().add_norm_norm_geglu_(x, y, closing, weight, eps, gate, up)
        residual = few.Residual(y, closing, x.new_empty(x.shape))
        gated = few.geglu(x, gate, up, norm_weight=weight, residual=residual, eps=eps)
        x.data = residual.out
        return gated

    def add_norm_gate_(self, x: Tensor, y: Tensor, closing: Tensor, eps: float, gate: DeviceMatrix, up: Tensor) -> Any:
        if _fits_in_product(x, gate):
            residual = few.Residual(y, closing, x.new_empty(x.shape))
            gated = few.geglu(x, gate, up, residual=residual, eps=eps)
            x.data = residual.out
            return gated
        self.add_norm_(x, y, closing, eps)
        return few.geglu(x, gate, up) if _takes(x, gate) else self.geglu(self.linear(x, gate), up)

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, q: Tensor, cache: Cache, slots: Ints, positions: Ints, window: int) -> Tensor:
        attention = attend.decode_attention if q.shape[0] <= _FEW_ROWS else attend.prefill_attention
        return attention(q, cache.keys, cache.values, cache.capacity, slots.device, positions.device, window)


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
