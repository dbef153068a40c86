"""The contract between model code and the machine: every operation a model is written in.

`models/` calls nothing else. `backends/reference` implements each operation in plain NumPy float32 and is the
specification; every other backend is tested against it, operation by operation.

Conventions. N tokens or rows, D model width, K inputs of a matrix, M its outputs, H heads, hd head width, V vocabulary.
Activations are float32 tensors of the backend's own type (`Tensor`: a NumPy array for `reference`, a native tensor for
`cpu`, a torch tensor for `cuda`), contiguous, rows first; all have a `shape`. Integer inputs (ids, positions, slots)
are int32 tensors made by `ints`. A result is valid until the backend's next `begin`: backends may reuse its memory
then; what must live longer (soft tokens, caches, logits handed to a user) is copied out with `keep` or made by `zeros`.
Operations whose name ends in an underscore write into their first argument and return it; no other operation changes
its inputs. Values of one row depend on that row (and, in attention, on its own sequence) alone, in an order of
summation that is a function of the row alone: results are the same bits for any number of threads, any chunking of a
prompt and any company in a batch. (`reference` multiplies with the platform's BLAS and keeps this to float32 rounding
only.)

`Primitives` is what a backend must be able to do. The operations here are fused forms of those: the body says what they
mean, a backend may do it faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellmd.backends.primitives import Ceilings, Clip, Matrix, Primitives, Tensor

__all__ = ["Ceilings", "Clip", "Matrix", "Ops", "Tensor"]


class Ops(Primitives):
    """One backend. See the module docstring for what holds for every operation."""

    # ---- dense ------------------------------------------------------------------------------------------------------

    def linears(self, x: Tensor, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        """Several matrices of one input (q, k, v; gate, up), so that a backend prepares the input once."""
        return tuple(self.linear(x, matrix) for matrix in matrices)

    def last_linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """The product that ends a residual block. What it gives is for a closing alone, as the y of an operation whose
        name begins with `add_norm_`: a backend may leave a sum open in it."""
        return self.linear(x, matrix)

    def norm_linears(self, x: Tensor, weight: Tensor, eps: float, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        return self.linears(self.rms_norm(x, weight, eps), matrices)

    def norm_geglu(self, x: Tensor, weight: Tensor, eps: float, gate: Matrix, up: Matrix) -> Tensor:
        """The first half of a gated feed-forward layer: `geglu` of both products of the normed input."""
        return self.geglu(*self.norm_linears(x, weight, eps, (gate, up)))

    def add_norm_(self, x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: float = 1.0) -> Tensor:
        """x = (x + rms_norm(y, weight)) * scale: the closing of every residual block."""
        self.add_(x, self.rms_norm(y, weight, eps))
        return x if scale == 1.0 else self.scale_(x, scale)

    def norm_logits(self, x: Tensor, weight: Tensor, eps: float, head: Matrix, cap: float) -> Tensor:
        """`softcap_` (cap 0: none) of the product of the normed input."""
        (logits,) = self.norm_linears(x, weight, eps, (head,))
        return self.softcap_(logits, cap) if cap else logits

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
        """The closing of the block before, x = (x + rms_norm(y, closing)) * scale, and products of the normed x."""
        self.add_norm_(x, y, closing, eps, scale)
        return self.norm_linears(x, weight, eps, matrices)

    def add_norm_norm_geglu_(
        self, x: Tensor, y: Tensor, closing: Tensor, weight: Tensor, eps: float, gate: Matrix, up: Matrix
    ) -> Tensor:
        """The closing of the block before, x += rms_norm(y, closing), and the first half of a gated layer of x."""
        self.add_norm_(x, y, closing, eps)
        return self.norm_geglu(x, weight, eps, gate, up)

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
        """The closing of the block before, x += rms_norm(y, closing), and a gated layer of x, itself for a closing."""
        return self.last_linear(self.add_norm_norm_geglu_(x, y, closing, weight, eps, gate, up), down)

    def add_norm_gate_(self, x: Tensor, y: Tensor, closing: Tensor, eps: float, gate: Matrix, up: Tensor) -> Tensor:
        """The closing of the block before, x += rms_norm(y, closing), and `geglu` of a product of x and of up."""
        self.add_norm_(x, y, closing, eps)
        return self.geglu(self.linear(x, gate), up)

    def add_norm_gated_linear_(
        self, x: Tensor, y: Tensor, closing: Tensor, eps: float, gate: Matrix, up: Tensor, projection: Matrix
    ) -> Tensor:
        """`add_norm_gate_`, and the product of it that ends the block (`last_linear`)."""
        return self.last_linear(self.add_norm_gate_(x, y, closing, eps, gate, up), projection)

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
        """(rms_norm(x * x_scale, weight) + embed(table, ids, table_scale, start, start + W)) * scale of x (N, W), the
        norm over each part of a row as wide as the weight. (N, W); x is used up."""
        n_rows, n_columns = x.shape
        width = weight.shape[0]
        parts = self.reshape(self.scale_(x, x_scale), (n_rows * (n_columns // width), width))
        normed = self.reshape(self.rms_norm(parts, weight, eps), (n_rows, n_columns))
        looked_up = self.embed(table, ids, table_scale, start, start + n_columns)
        return self.scale_(self.add_(normed, looked_up), scale)

    # ---- positions and attention ------------------------------------------------------------------------------------

    def norm_rope(self, x: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
        return self.rope(self.rms_norm(x, weight, eps), table)

    def norm_rope_2d(self, x: Tensor, weight: Tensor, eps: float, table_x: Tensor, table_y: Tensor) -> Tensor:
        return self.rope_2d(self.rms_norm(x, weight, eps), table_x, table_y)

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
        """`append_` of raw projections (N, Hkv, hd): keys normed and turned, values normed without a weight."""
        turned = self.norm_rope(keys, key_weight, eps, table)
        self.append_(cache, turned, self.rms_norm(values, None, eps), slots, positions)

    def norm_rope_append_(
        self,
        q: Tensor,
        q_weight: Tensor,
        cache: Any,
        keys: Tensor,
        values: Tensor,
        key_weight: Tensor,
        eps: float,
        table: Tensor,
        slots: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """`append_normed_`, and `norm_rope` of q by the same table, which is given back."""
        self.append_normed_(cache, keys, values, key_weight, eps, table, slots, positions)
        return self.norm_rope(q, q_weight, eps, table)

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
        """`attention` from raw projections to its output, for a closing (`last_linear`). q (N, H, hd) is normed and
        turned; written: keys and values (N, Hkv, hd), to be appended as `append_normed_` does, or nothing. apart: each
        row has a slot of its own, or is another's repetition."""
        if written:
            keys, values = written
            q = self.norm_rope_append_(q, q_weight, cache, keys, values, k_weight, eps, table, slots, positions)
        else:
            q = self.norm_rope(q, q_weight, eps, table)
        attended = self.attention(q, cache, slots, positions, window)
        n_rows, n_heads, head_dim = attended.shape
        return self.last_linear(self.reshape(attended, (n_rows, n_heads * head_dim)), output)
