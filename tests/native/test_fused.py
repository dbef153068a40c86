"""Fused operations against the parts that `Ops` makes them of: the same bits, in results and in what is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cellmd.backends.ops import Ops, Tensor
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps

D, F = 264, 200
CODINGS = [Coding("i4", "tile16", 128, "i8"), Coding("i8", "row", 0, "f16"), Coding("f16")]


class Case:
    """Inputs of one comparison, the same whenever it is made."""

    def __init__(self, ops: CpuOps, n: int) -> None:
        self.ops, self.n = ops, n
        self._rng = np.random.default_rng(n)

    def floats(self, *shape: int) -> Tensor:
        return self.ops.floats(self._rng.standard_normal(shape, dtype=np.float32))

    def matrices(self, codings: list[Coding], n: int = 72, k: int = D) -> list[Any]:
        weights = (self._rng.standard_normal((n, k), dtype=np.float32) for _ in codings)
        return [self.ops.matrix(encode("w", w, coding)) for w, coding in zip(weights, codings, strict=True)]


def products(ops: Any, case: Case) -> list[Tensor]:
    x, y = case.floats(case.n, D), case.floats(case.n, D)
    weights, matrices = (case.floats(D), 0.7, case.floats(D), 1e-6), case.matrices(CODINGS)
    return [*ops.add_norm_norm_linears_(case.ops, x, y, *weights, matrices), x]


def gated(ops: Any, case: Case) -> list[Tensor]:
    x, y, closing, weight = case.floats(case.n, D), case.floats(case.n, D), case.floats(D), case.floats(D)
    gate, up, other = case.matrices([CODINGS[0], CODINGS[0], CODINGS[1]], F)
    downs = case.matrices([*CODINGS, *(Coding("i4", "tile16", group, "f16") for group in (0, 32, 256))], 40, F)
    downs += case.matrices([Coding("i8", "tile16", 64, "f16")], 40, F)
    results = [
        ops.add_norm_norm_ffn_(case.ops, x, y, closing, weight, 1e-6, *matrices)
        for matrices in ((gate, other, downs[0]), *((gate, up, down) for down in downs))
    ]
    wide = case.ops.columns(case.floats(case.n, F + 100), 48, 48 + F)
    return [*results, ops.add_norm_gated_linear_(case.ops, x, y, closing, 1e-6, gate, wide, downs[0]), x]


def attention(ops: Any, case: Case) -> list[Tensor]:
    n, cache = case.n, case.ops.new_cache(2, 40, 1, 66)
    positions, slots = case.ops.ints(range(n)), case.ops.ints([1] * n)
    turns = case.ops.rope_table(positions, 1e4, 16, 66)
    q, k, v = (case.floats(n, heads, 66) for heads in (4, 1, 1))
    norms = case.floats(66), case.floats(66)
    (output,) = case.matrices(CODINGS[:1])
    results = []
    for written, k_norm in (([k, v], norms[1]), ([], None)):
        where = slots, positions, 7, output
        results.append(ops.attend_(case.ops, cache, q, norms[0], written, k_norm, 1e-6, turns, *where, apart=False))
    return results


def vocabulary(ops: Any, case: Case) -> list[Tensor]:
    head = case.matrices(CODINGS)[case.n % 3]
    logits = ops.norm_logits(case.ops, case.floats(case.n, D), case.floats(D), 1e-6, head, 30.0)
    table = case.ops.table(encode("t", case._rng.standard_normal((50, 2 * D)), Coding("i4", "row", 32, "f16")))
    ids = case.ops.ints([i % 50 for i in range(case.n)])
    x, weight = case.floats(case.n, 256), case.floats(32)
    return [logits, ops.norm_add_embed(case.ops, x, 0.5, weight, 1e-6, table, ids, 2.0, 256, 0.7)]


@pytest.mark.parametrize("n", [1, 2, 9, 30])
@pytest.mark.parametrize("kind", [products, gated, attention, vocabulary])
def test_the_same_bits(make: Callable[..., CpuOps], kind: Callable[[Any, Case], list[Tensor]], n: int) -> None:
    parts, *fused = (
        [ops.to_numpy(x) for x in kind(form, Case(ops, n))]
        for ops, form in ((make(1), Ops), (make(1), type(make(1))), (make(2), type(make(2))))
    )
    for results in fused:
        assert all(np.array_equal(got, want) for got, want in zip(results, parts, strict=True))
