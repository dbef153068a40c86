"""Binding stored tensors to a backend by their published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cellmd.backends.ops import Matrix, Ops, Tensor
from cellmd.errors import LayoutError
from cellmd.quant.tensor import PackedTensor

_CLIP_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


class Weights:
    """The tensors below one prefix of names, and the backend they are bound to."""

    def __init__(self, ops: Ops, tensors: Mapping[str, PackedTensor], prefix: str = "") -> None:
        self.ops = ops
        self._tensors = tensors
        self._prefix = prefix

    def under(self, prefix: str) -> Weights:
        return Weights(self.ops, self._tensors, self._prefix + prefix)

    def tensors(self) -> list[PackedTensor]:
        return [tensor for name, tensor in self._tensors.items() if name.startswith(self._prefix)]

    def stored(self, name: str) -> PackedTensor:
        """The stored tensor; raises LayoutError naming it if the file has none of this name."""
        tensor = self._tensors.get(self._prefix + name)
        if tensor is None:
            raise LayoutError(f"tensor {self._prefix + name!r} is missing from the file; convert the checkpoint again")
        return tensor

    def matrix(self, name: str, *, bias: str | None = None) -> Matrix:
        """`name`.weight as a matrix to multiply with, and the tensor called `bias` if there is one to add."""
        return self.ops.matrix(self.stored(f"{name}.weight"), bias=None if bias is None else self.stored(bias))

    def clippable(self, name: str, clipped: bool) -> Matrix:
        """A linear layer of a tower, which keeps its inputs and outputs within stored bounds if `clipped`."""
        weight = self.stored(f"{name}.linear.weight")
        if not clipped:
            return self.ops.matrix(weight)
        low_in, high_in, low_out, high_out = (self.scalar(f"{name}.{bound}") for bound in _CLIP_BOUNDS)
        return self.ops.matrix(weight, clip=(low_in, high_in, low_out, high_out))

    def table(self, name: str) -> Matrix:
        """A tensor whose rows are looked up; leading axes are joined, so (2, S, D) becomes (2 S, D)."""
        tensor = self.stored(name)
        width = tensor.shape[-1]
        n_rows = 1
        for size in tensor.shape[:-1]:
            n_rows *= size
        return self.ops.table(replace(tensor, shape=(n_rows, width)))

    def array(self, name: str) -> Tensor:
        return self.ops.array(self.stored(name))

    def norm(self, name: str) -> Tensor:
        return self.array(f"{name}.weight")

    def scalar(self, name: str) -> float:
        """A stored single number, on the host."""
        return self.ops.number(self.stored(name))
