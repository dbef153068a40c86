"""Attention over stored keys and values: what storage costs, and that nothing depends on company, chunks or threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from naive_ops import EPS, attention_row

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps

CACHES = ["f16", "f32", "i8"]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def as_stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """x (N, H, hd) as a cache holds it."""
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float64)
    if dtype == "f32":
        return x.astype(np.float64)
    largest = np.abs(x).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(x * inverse) * (largest * (np.float32(1) / np.float32(127))).astype(np.float64)


def run(
    ops: CpuOps,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    window: int,
    chunks: list[int],
    capacity: int,
    slot: int = 0,
) -> np.ndarray:
    """One sequence, chunk by chunk: (N, H, hd)."""
    cache = ops.new_cache(slot + 1, capacity, k.shape[1], k.shape[2])
    out, start = [], 0
    for n in chunks:
        rows = slice(start, start + n)
        slots, positions = ops.ints([slot] * n), ops.ints(range(start, start + n))
        ops.append_(cache, ops.floats(k[rows]), ops.floats(v[rows]), slots, positions)
        out.append(ops.to_numpy(ops.attention(ops.floats(q[rows]), cache, slots, positions, window)))
        start += n
    return np.concatenate(out)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    first = [max(0, i - window + 1) if window else 0 for i in range(len(q))]
    return np.stack([attention_row(q[i].astype(np.float64), k[f : i + 1], v[f : i + 1]) for i, f in enumerate(first)])


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """The same in float32."""
    k, v = k.astype(np.float32), v.astype(np.float32)
    first = [max(0, i - window + 1) if window else 0 for i in range(len(q))]
    return np.stack([attention_row(q[i], k[f : i + 1], v[f : i + 1]) for i, f in enumerate(first)])


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize(
    ("n", "n_heads", "n_kv_heads", "head_dim", "window"),
    [
        (150, 8, 1, 64, 0),
        (150, 8, 1, 64, 70),
        (90, 4, 2, 20, 33),
        (70, 3, 3, 8, 0),
        (40, 16, 1, 128, 5),
        (130, 1, 1, 16, 64),
        (40, 4, 1, 32, 100),  # a cache smaller than the window
    ],
)
def test_as_good_as_a_plain_form(
    make: Callable[..., CpuOps], dtype: str, n: int, n_heads: int, n_kv_heads: int, head_dim: int, window: int
) -> None:
    q, k, v = (normal(i, n, h, head_dim) for i, h in enumerate((n_heads, n_kv_heads, n_kv_heads)))
    q = q * np.float32(2 / head_dim**0.5)
    got = run(make(2, dtype), q, k, v, window=window, chunks=[n], capacity=n)
    stored = as_stored(k, dtype), as_stored(v, dtype)
    want = exact(q, *stored, window)
    allowed = 2 * np.abs(plain(q, *stored, window) - want).max() + 4 * EPS * np.abs(v).max()
    assert np.abs(got - want).max() <= allowed


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("window", [0, 50])
def test_bits_do_not_depend_on_chunks_threads_or_place(make: Callable[..., CpuOps], dtype: str, window: int) -> None:
    n = 200
    q, k, v = normal(1, n, 8, 48) / 4, normal(2, n, 1, 48), normal(3, n, 1, 48)
    want = run(make(1, dtype), q, k, v, window=window, chunks=[1] * n, capacity=n)
    for threads in (1, 2, 3):
        for chunks in ([n], [64, 64, 72], [1, 198, 1], [7] * 28 + [4]):
            got = run(make(threads, dtype), q, k, v, window=window, chunks=chunks, capacity=n, slot=threads)
            assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", CACHES)
def test_bits_do_not_depend_on_the_ring(make: Callable[..., CpuOps], dtype: str) -> None:
    """A ring that has wrapped several times gives what room for everything gives."""
    n, window = 700, 40
    q, k, v = normal(1, n, 2, 32) / 4, normal(2, n, 1, 32), normal(3, n, 1, 32)
    want = run(make(2, dtype), q, k, v, window=window, chunks=[100] * 7, capacity=n)
    got = run(make(2, dtype), q, k, v, window=window, chunks=[20] * 35, capacity=window + 19)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", CACHES)
def test_bits_do_not_depend_on_other_sequences(make: Callable[..., CpuOps], dtype: str) -> None:
    """Rows of three sequences in one batch, one of them full of infinities, give what each gives alone."""
    ops, n, lengths = make(2, dtype), 80, (80, 33, 64)
    data = [[normal(10 * s + i, n, h, 32) for i, h in enumerate((4, 2, 2))] for s in range(3)]
    data[1][1][:], data[1][2][:] = np.inf, np.nan
    alone = [
        run(ops, *(x[:m] for x in d), window=24, chunks=[m], capacity=n) for d, m in zip(data, lengths, strict=True)
    ]
    cache = ops.new_cache(3, n, 2, 32)
    order = [(s, p) for p in range(n) for s in range(3) if p < lengths[s]]
    slots, positions = (ops.ints(list(column)) for column in zip(*order, strict=True))
    q, k, v = (ops.floats(np.stack([data[s][i][p] for s, p in order])) for i in range(3))
    ops.append_(cache, k, v, slots, positions)
    got = ops.to_numpy(ops.attention(q, cache, slots, positions, 24))
    for s in (0, 2):
        mine = [i for i, (slot, _) in enumerate(order) if slot == s]
        assert np.array_equal(got[mine], alone[s])
        assert np.isfinite(got[mine]).all()


@pytest.mark.parametrize("dtype", CACHES)
def test_what_a_slot_held_before_is_never_seen(make: Callable[..., CpuOps], dtype: str) -> None:
    ops, n = make(2, dtype), 90
    q, k, v = normal(1, n, 4, 16), normal(2, n, 1, 16), normal(3, n, 1, 16)
    want = run(ops, q, k, v, window=0, chunks=[n], capacity=n)
    cache = ops.new_cache(1, n, 1, 16)
    slots, positions = ops.ints([0] * n), ops.ints(range(n))
    bad = ops.floats(np.full((n, 1, 16), np.nan))
    ops.append_(cache, bad, bad, slots, positions)
    got = []
    for i in range(n):
        slot, position = ops.ints([0]), ops.ints([i])
        ops.append_(cache, ops.floats(k[i : i + 1]), ops.floats(v[i : i + 1]), slot, position)
        got.append(ops.to_numpy(ops.attention(ops.floats(q[i : i + 1]), cache, slot, position, 0)))
    assert np.array_equal(np.concatenate(got), want)


@pytest.mark.parametrize("dtype", CACHES)
def test_extreme_keys_and_values_stay_finite(make: Callable[..., CpuOps], dtype: str) -> None:
    """Beyond the largest half float values are held at it; a score of any size wins or loses without overflow."""
    n = 70
    k, v = normal(2, n, 1, 16) * np.float32(1e5), normal(3, n, 1, 16) * np.float32(1e5)
    got = run(make(2, dtype), normal(1, n, 2, 16) * np.float32(1e3), k, v, window=0, chunks=[n], capacity=n)
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= np.abs(v).max() * (1 + 4 * EPS)


def test_long_context_is_shared_among_threads(make: Callable[..., CpuOps]) -> None:
    """More blocks of keys than one wave holds."""
    n = 64 * 70 + 5
    k, v = normal(2, n, 1, 16), normal(3, n, 1, 16)
    q = normal(1, 1, 4, 16)
    results = []
    for threads in (1, 2, 3):
        ops = make(threads)
        cache = ops.new_cache(1, n, 1, 16)
        slots, positions = ops.ints([0] * n), ops.ints(range(n))
        ops.append_(cache, ops.floats(k), ops.floats(v), slots, positions)
        results.append(ops.to_numpy(ops.attention(ops.floats(q), cache, ops.ints([0]), ops.ints([n - 1]), 0)))
    stored = as_stored(k, "f16"), as_stored(v, "f16")
    want = attention_row(q[0].astype(np.float64), *stored)
    scale = np.abs(plain_row(q[0], *stored) - want).max() + 2 * EPS * np.abs(v).max()
    assert np.abs(results[0][0] - want).max() <= 2 * scale
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def plain_row(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return attention_row(q, k.astype(np.float32), v.astype(np.float32))


@pytest.mark.parametrize(("n", "n_heads", "head_dim"), [(1, 1, 8), (63, 2, 16), (64, 3, 20), (200, 2, 64)])
def test_bidirectional(make: Callable[..., CpuOps], n: int, n_heads: int, head_dim: int) -> None:
    q, k, v = (normal(i, n, n_heads, head_dim) for i in range(3))
    q = q / np.float32(head_dim**0.5)
    results = []
    for threads in (1, 2, 3):
        ops = make(threads)
        results.append(ops.to_numpy(ops.attention_bidirectional(ops.floats(q), ops.floats(k), ops.floats(v))))
    want = np.stack([attention_row(row, k.astype(np.float64), v.astype(np.float64)) for row in q.astype(np.float64)])
    in_float = np.stack([attention_row(row, k, v) for row in q])
    assert np.abs(results[0] - want).max() <= 2 * np.abs(in_float - want).max() + 4 * EPS * np.abs(v).max()
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_relative_bits_do_not_depend_on_threads(make: Callable[..., CpuOps]) -> None:
    q, k, v, r = normal(1, 300, 8, 128), normal(2, 300, 8, 128), normal(3, 300, 8, 128), normal(4, 13, 8, 128)
    results = []
    for threads in (1, 2, 3):
        ops = make(threads)
        tensors = (ops.floats(x) for x in (q, k, v, r))
        results.append(ops.to_numpy(ops.attention_relative(*tensors, past=12, future=0, cap=50.0)))
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", CACHES)
def test_at_the_end_of_the_longest_context(make: Callable[..., CpuOps], dtype: str) -> None:
    """131,072 positions: as good as a plain form, the same bits asked alone or together, and one key of the first
    block, which is all that a query looks for, is found among them."""
    n, n_heads, head_dim = 131_072, 2, 16
    k, v = normal(1, n, 1, head_dim), normal(2, n, 1, head_dim)
    q = normal(3, 3, n_heads, head_dim) / 2
    k[7] = 10 * q[0, 0] / np.linalg.norm(q[0, 0])
    q[0, 0] *= 20 / np.linalg.norm(q[0, 0])
    positions = [n - 1, n - 2, n - 70]
    results = []
    for threads, together in ((1, True), (2, False)):
        ops = make(threads, dtype)
        cache = ops.new_cache(1, n, 1, head_dim)
        for start in range(0, n, 8192):
            rows, at = slice(start, start + 8192), range(start, start + 8192)
            ops.append_(cache, ops.floats(k[rows]), ops.floats(v[rows]), ops.ints([0] * 8192), ops.ints(at))
        asked = [[0, 1, 2]] if together else [[0], [1], [2]]
        parts = [
            ops.attention(ops.floats(q[i]), cache, ops.ints([0] * len(i)), ops.ints([positions[j] for j in i]), 0)
            for i in asked
        ]
        results.append(np.concatenate([ops.to_numpy(part) for part in parts]))
    assert np.array_equal(results[0], results[1])
    keys, values = as_stored(k, dtype), as_stored(v, dtype)
    for i, position in enumerate(positions):
        seen = slice(0, position + 1)
        want = attention_row(q[i].astype(np.float64), keys[seen], values[seen])
        close = attention_row(q[i], keys[seen].astype(np.float32), values[seen].astype(np.float32))
        allowed = 2 * np.abs(close - want).max() + 4 * EPS * np.abs(v).max()
        assert np.abs(results[0][i] - want).max() <= allowed
    assert np.abs(results[0][0, 0] - values[7, 0]).max() < 1e-6 * np.abs(v).max()
