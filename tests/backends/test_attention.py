"""The cache and the three kinds of attention."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.backends.ops import Ops
from naive_ops import assert_close, attention_row, packed, rms_norm, rope, softmax


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def run_causal(
    ops: Ops, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, capacity: int, chunks: list[int]
) -> np.ndarray:
    """One sequence through slot 1 of 3, chunk by chunk: (N, H, hd)."""
    cache = ops.new_cache(3, capacity, k.shape[1], k.shape[2])
    out, start = [], 0
    for n in chunks:
        ops.begin()
        rows = slice(start, start + n)
        slots, positions = ops.ints([1] * n), ops.ints(range(start, start + n))
        ops.append_(cache, ops.floats(k[rows]), ops.floats(v[rows]), slots, positions)
        out.append(ops.to_numpy(ops.attention(ops.floats(q[rows]), cache, slots, positions, window)))
        start += n
    return np.concatenate(out)


def want_causal(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    first = [max(0, i - window + 1) if window else 0 for i in range(len(q))]
    return np.stack([attention_row(q[i], k[first[i] : i + 1], v[first[i] : i + 1]) for i in range(len(q))])


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 1, 16), (6, 2, 20), (3, 3, 8), (8, 1, 256)])
@pytest.mark.parametrize("window", [0, 1, 7, 64])
def test_causal(ops: Ops, rng: np.random.Generator, n_heads: int, n_kv_heads: int, head_dim: int, window: int) -> None:
    n = 40
    q = normal(rng, n, n_heads, head_dim) / head_dim**0.5
    k, v = normal(rng, n, n_kv_heads, head_dim), normal(rng, n, n_kv_heads, head_dim)
    got = run_causal(ops, q, k, v, window, n, [n])
    assert_close(got, want_causal(q, k, v, window), np.abs(v).max(), roundings=16)


@settings(deadline=None, max_examples=25)
@given(
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    window=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_ring_wraps_around(ops: Ops, chunks: list[int], window: int, seed: int) -> None:
    """A ring of window + chunk - 1 places gives what room for everything gives."""
    rng = np.random.default_rng(seed)
    n = sum(chunks)
    q, k, v = normal(rng, n, 2, 8), normal(rng, n, 1, 8), normal(rng, n, 1, 8)
    got = run_causal(ops, q, k, v, window, window + max(chunks) - 1, chunks)
    assert_close(got, want_causal(q, k, v, window), 8 * np.abs(v).max())


def test_rows_of_several_sequences_in_any_order(ops: Ops, rng: np.random.Generator) -> None:
    n, heads = 9, (2, 16)
    data = {slot: [normal(rng, n, *heads) for _ in range(3)] for slot in (0, 2)}
    cache = ops.new_cache(3, n, *heads)
    for slot, (_, k, v) in data.items():
        slots, positions = ops.ints([slot] * n), ops.ints(range(n))
        ops.append_(cache, ops.floats(k), ops.floats(v), slots, positions)
    order = [(2, 5), (0, 8), (2, 0), (0, 3), (2, 8), (0, 4)]
    q = np.stack([data[slot][0][position] for slot, position in order])
    slots, positions = (ops.ints(column) for column in zip(*order, strict=True))
    got = ops.to_numpy(ops.attention(ops.floats(q), cache, slots, positions, 4))
    want = np.stack([want_causal(*data[slot], 4)[position] for slot, position in order])
    assert_close(got, want, 8 * max(np.abs(v).max() for _, _, v in data.values()))


def test_a_slot_is_reused_from_position_zero(ops: Ops, rng: np.random.Generator) -> None:
    n, cache = 6, ops.new_cache(1, 6, 1, 8)
    for _ in range(2):
        q, k, v = normal(rng, n, 2, 8), normal(rng, n, 1, 8), normal(rng, n, 1, 8)
        out = []
        for i in range(n):
            slots, positions = ops.ints([0]), ops.ints([i])
            ops.append_(cache, ops.floats(k[i : i + 1]), ops.floats(v[i : i + 1]), slots, positions)
            out.append(ops.to_numpy(ops.attention(ops.floats(q[i : i + 1]), cache, slots, positions, 0)))
        assert_close(np.concatenate(out), want_causal(q, k, v, 0), 8 * np.abs(v).max())


def test_append_normed_is_its_parts(ops: Ops, rng: np.random.Generator) -> None:
    n, k, v, weight = 5, normal(rng, 5, 2, 16), normal(rng, 5, 2, 16), normal(rng, 16)
    angles = rng.uniform(-3, 3, (n, 4))
    table = ops.floats(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    cache, slots, positions = ops.new_cache(1, n, 2, 16), ops.ints([0] * n), ops.ints(range(n))
    ops.append_normed_(cache, ops.floats(k), ops.floats(v), ops.array(packed(weight)), 1e-6, table, slots, positions)
    q = normal(rng, n, 4, 16) / 4
    got = ops.to_numpy(ops.attention(ops.floats(q), cache, slots, positions, 0))
    keys = rope(rms_norm(k.astype(np.float64), weight, 1e-6), angles)
    values = rms_norm(v.astype(np.float64), None, 1e-6)
    assert_close(got, want_causal(q, keys, values, 0), 4 * np.abs(values).max())


def test_bidirectional(ops: Ops, rng: np.random.Generator) -> None:
    q, k, v = normal(rng, 30, 3, 12) / 4, normal(rng, 30, 3, 12), normal(rng, 30, 3, 12)
    got = ops.to_numpy(ops.attention_bidirectional(ops.floats(q), ops.floats(k), ops.floats(v)))
    wide = [x.astype(np.float64) for x in (q, k, v)]
    want = np.stack([attention_row(row, wide[1], wide[2]) for row in wide[0]])
    assert_close(got, want, np.abs(v).max(), roundings=16)


@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize(("past", "future", "n_keys"), [(12, 0, 13), (4, 0, 3), (1, 1, 2), (5, 3, 8), (12, 5, 11)])
def test_relative(ops: Ops, rng: np.random.Generator, n: int, past: int, future: int, n_keys: int) -> None:
    heads, cap = (3, 12), 5.0
    q, k, v, r = (normal(rng, rows, *heads) for rows in (n, n, n, n_keys))
    got = ops.to_numpy(
        ops.attention_relative(*(ops.floats(x) for x in (q, k, v, r)), past=past, future=future, cap=cap)
    )
    q, k, v, r = (x.astype(np.float64) for x in (q, k, v, r))
    want = np.zeros_like(q)
    for i in range(n):
        seen = [j for j in range(n) if 0 <= i - j < past or 0 < j - i < future]
        for h in range(heads[0]):
            biases = [r[past - (i - j), h] if past - (i - j) < n_keys else np.zeros(heads[1]) for j in seen]
            scores = [q[i, h] @ k[j, h] + q[i, h] @ bias for j, bias in zip(seen, biases, strict=True)]
            want[i, h] = softmax(cap * np.tanh(np.array(scores) / cap)) @ v[seen, h]
    assert_close(got, want, 8 * np.abs(v).max())


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize(("n_done", "n_copied"), [(10, 10), (70, 70), (200, 200), (70, 66), (200, 190)])
def test_a_copied_slot_goes_on_like_its_source(
    ops: Ops, rng: np.random.Generator, window: int, n_done: int, n_copied: int
) -> None:
    """Bit for bit, rings that have gone round included; what was in the target before does not matter."""
    capacity, n = 64 if window else 256, n_done + 20
    q, k, v = (normal(rng, n, heads, 16) for heads in (4, 2, 2))
    cache = ops.new_cache(3, capacity, 2, 16)

    def append(slot: int, start: int, stop: int) -> None:
        ops.begin()
        at = ops.ints([slot] * (stop - start)), ops.ints(range(start, stop))
        ops.append_(cache, ops.floats(k[start:stop]), ops.floats(v[start:stop]), *at)

    def look(slot: int, row: int) -> np.ndarray:
        ops.begin()
        at = ops.ints([slot]), ops.ints([row])
        return np.asarray(ops.to_numpy(ops.attention(ops.floats(q[row : row + 1]), cache, *at, window)))

    for start in range(0, n_done, 10):
        append(2, start, min(start + 10, n_done))
    append(0, 0, 5)
    ops.copy_slot_(cache, 2, 0, n_copied)
    for slot in (2, 0):
        append(slot, n_copied, n_copied + 5)
    for row in range(n_copied, n_copied + 5):
        assert np.array_equal(look(0, row), look(2, row))
