"""The backend that is made of the kernels, operation by operation against torch alone, at bfloat16's precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cellmd.backends.cuda.fused import FusedOps
from cellmd.backends.cuda.plain import TorchOps
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding, PackedTensor

pytestmark = pytest.mark.reference

D, F = 128, 96
CODINGS = [Coding("i4", "tile16", 32, "f16"), Coding("i8", "tile16", 64, "i8")]
Case = Callable[[TorchOps, Callable[..., np.ndarray], Callable[..., PackedTensor]], Any]


def opened(ops: TorchOps, normal: Any, n: int) -> tuple[Any, Any, Any]:
    """x, y and the weight that closes a residual block."""
    return ops.floats(normal(n, D)), ops.floats(normal(n, D)), ops.floats(normal(D))


def products(n: int, mixed: bool) -> Case:
    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        matrices = [ops.matrix(weight(F, D, CODINGS[mixed and i == 1])) for i in range(3)]
        x, y, closing = opened(ops, normal, n)
        norm = ops.floats(normal(D))
        return [*ops.add_norm_norm_linears_(x, y, closing, 0.7, norm, 1e-6, matrices), x, *ops.linears(x, matrices)]

    return case


def narrow(n: int, mixed: bool) -> Case:
    """Matrices of one tile of rows or less, and of few groups."""

    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        x, coding = ops.floats(normal(n, D)), CODINGS[mixed]
        return [ops.linear(x, ops.matrix(weight(n_outputs, D, coding))) for n_outputs in (1, 8, 16, 17)]

    return case


def gated(n: int, mixed: bool) -> Case:
    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        gate, up = (ops.matrix(weight(F, D, CODINGS[mixed and i == 1])) for i in range(2))
        x, y, closing = opened(ops, normal, n)
        first = ops.add_norm_norm_geglu_(x, y, closing, ops.floats(normal(D)), 1e-6, gate, up)
        wide = ops.columns(ops.floats(normal(n, 4 * F)), F, 2 * F)
        second = ops.add_norm_gate_(x, y, closing, 1e-6, gate, wide)
        return [first, second, x, ops.norm_geglu(x, closing, 1e-6, gate, up)]

    return case


def attention(n: int, mixed: bool) -> Case:
    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        cache, positions, slots = ops.new_cache(2, 40, 1, 32), ops.ints(range(n)), ops.ints([1] * n)
        turns = ops.rope_table(positions, 1e4, 16, 32)
        q, k, v = (ops.floats(normal(n, heads, 32) / 4) for heads in (4, 1, 1))
        q = ops.norm_rope_append_(
            q, ops.floats(normal(32)), cache, k, v, ops.floats(normal(32)), 1e-6, turns, slots, positions
        )
        return [turns, q, ops.attention(q, cache, slots, positions, 7 if mixed else 0)]

    return case


def blocks(n: int, mixed: bool) -> Case:
    """Attention from raw products, with and without keys and values of its own, and closings of what it gives."""

    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        heads, head_dim = 4, 128
        cache, positions, slots = ops.new_cache(n + 1, 60, 1, head_dim), ops.ints(range(50, 50 + n)), ops.ints(range(n))
        for slot in range(n):
            old = ops.floats(normal(50 + n, 1, head_dim)), ops.floats(normal(50 + n, 1, head_dim))
            ops.append_(cache, *old, ops.ints([slot] * (50 + n)), ops.ints(range(50 + n)))
        turns, norms = ops.rope_table(positions, 1e4, 64, head_dim), [ops.floats(normal(head_dim)) for _ in range(2)]
        output, gate, up = (ops.matrix(weight(m, k, CODINGS[mixed])) for m, k in ((D, 512), (F, D), (F, D)))
        results = []
        for written in (True, False):
            q, k, v = (ops.floats(normal(n, h, head_dim) / 4) for h in (heads, 1, 1))
            parts = [k, v] if written else []
            where = slots, positions, 30 if mixed else 0, output
            y = ops.attend_(cache, q, norms[0], parts, norms[1], 1e-6, turns, *where, apart=True)
            x, _, closing = opened(ops, normal, n)
            gated = ops.add_norm_norm_geglu_(x, y, closing, ops.floats(normal(D)), 1e-6, gate, up)
            y = ops.last_linear(gated, ops.matrix(weight(D, F, CODINGS[mixed])))
            results += [gated, x, ops.add_norm_(x, y, closing, 1e-6, 0.5)]
        return results

    return case


def vocabulary(n: int, mixed: bool) -> Case:
    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        head = ops.matrix(weight(F, D, CODINGS[mixed]))
        logits = ops.norm_logits(ops.floats(normal(n, D)), ops.floats(normal(D)), 1e-6, head, 30.0)
        table, ids = (
            ops.table(weight(50, 2 * D, Coding("i4", "row", 32, "f16"))),
            ops.ints([49, 0, 7][:n] * (n // 3 + 1)),
        )
        rows = ops.norm_add_embed(
            ops.floats(normal(ids.shape[0], D)), 0.5, ops.floats(normal(32)), 1e-6, table, ids, 2.0, D, 0.7
        )
        how = [ops.numbers([x] * n) for x in (0.7, 5, 0.9, 0.01, 0.6)]
        guessed = ops.guess(*ops.top_k(logits, 5), *how)[0]
        return [logits, ops.top_k(logits, 5)[0], rows, ops.embed(head, ids, 3.0), guessed]

    return case


def of_many(n: int, mixed: bool) -> Case:
    """More rows than the kernels for few take."""

    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        n_rows = 64 + n
        gate, up = (ops.matrix(weight(F, D, CODINGS[mixed and i == 1])) for i in range(2))
        x, y, closing = opened(ops, normal, n_rows)
        wide = ops.columns(ops.floats(normal(n_rows, 4 * F)), F, 2 * F)
        return [ops.norm_geglu(x, closing, 1e-6, gate, up), ops.add_norm_gate_(x, y, closing, 1e-6, gate, wide), x]

    return case


def tower(n: int, mixed: bool) -> Case:
    def case(ops: TorchOps, normal: Any, weight: Any) -> Any:
        clip = (-1.0, 1.5, -0.5, 0.75)
        matrices = [ops.matrix(weight(D, D, CODINGS[mixed and i == 1]), clip=clip) for i in range(2)]
        gated = ops.norm_geglu(ops.floats(normal(n, D)), ops.floats(normal(D)), 1e-6, *matrices)
        q, k, v, keys = (ops.floats(normal(rows, 2, 32) / 4) for rows in (n, n, n, 5))
        turns = [ops.rope_table(ops.ints(range(start, start + n)), 1e2, 16, 16) for start in (0, 3)]
        turned = ops.norm_rope_2d(q, ops.floats(normal(32)), 1e-6, *turns)
        seen = ops.attention_bidirectional(turned, k, ops.rms_norm(v, None, 1e-6))
        near = ops.attention_relative(q, k, v, keys, past=4, future=2, cap=20.0)
        return [gated, turned, seen, near, ops.depthwise_conv1d(ops.floats(normal(n, D)), ops.floats(normal(D, 5)))]

    return case


STEPS = {blocks: 6}
"""Roundings to bfloat16 that follow one another, where there are several: attention, gated layer, product, twice."""


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [products, narrow, gated, attention, blocks, vocabulary, of_many, tower])
def test_against_torch_alone(kind: Callable[[int, bool], Case], n: int, mixed: bool, device: str) -> None:
    results = []
    for ops in (TorchOps(), FusedOps(device)):
        rng = np.random.default_rng(n)

        def normal(*shape: int, rng: np.random.Generator = rng) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32)

        def weight(m: int, k: int, coding: Coding, normal: Any = normal) -> PackedTensor:
            return encode("w", normal(m, k) / np.float32(k**0.5), coding)

        results.append([ops.to_numpy(x) for x in kind(n, mixed)(ops, normal, weight)])
    for want, got in zip(*results, strict=True):
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) <= STEPS.get(kind, 1) * 2**-7 * np.linalg.norm(want)


def test_hostile_logits(device: str) -> None:
    """Equals, zeros of either sign, infinities and what is not a number: as torch alone orders them."""
    values = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -3.4e38]
    rows = np.random.default_rng(0).choice(np.array(values, np.float32), (3, 5000))
    rows[1, :4990] = np.nan
    rows[2] = 1.5
    (want, columns), (got, places) = (ops.top_k(ops.floats(rows), 40) for ops in (TorchOps(), FusedOps(device)))
    assert np.array_equal(TorchOps().to_numpy(columns), TorchOps().to_numpy(places))
    assert np.array_equal(TorchOps().to_numpy(want), TorchOps().to_numpy(got), equal_nan=True)
