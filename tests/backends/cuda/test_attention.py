"""The cache that grows, and rows of all kinds in one batch, against the reference backend."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.backends.cuda.attention import Cache, Ints, runs_of
from cellmd.backends.cuda.plain import TorchOps
from cellmd.backends.ops import Ops
from cellmd.backends.reference.operations import ReferenceOps
from naive_ops import assert_close

pytestmark = pytest.mark.reference

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=30))
def test_runs_are_the_rows_in_order(rows: list[tuple[int, int]]) -> None:
    slots, positions = (np.array([row[i] for row in rows], np.int32) for i in range(2))
    runs = runs_of(slots, positions)
    assert [(run.slot, run.position + i) for run in runs for i in range(run.n)] == rows
    assert [run.first for run in runs] == np.cumsum([0, *(run.n for run in runs)])[: len(runs)].tolist()
    for before, after in pairwise(runs):
        assert (before.slot, before.position + before.n) != (after.slot, after.position)


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.lists(st.sampled_from([0, 1, 1, 2, 7, 30]), min_size=3, max_size=3), min_size=1, max_size=6),
    window=st.sampled_from([0, 1, 9]),
    known=st.booleans(),
    seed=st.integers(0, 100),
)
def test_rows_of_any_kind(steps: list[list[int]], window: int, known: bool, seed: int) -> None:
    """Three sequences that grow by any number of rows a step, through a ring if there is a window; whether the host
    knows the rows or not."""
    totals = np.sum(steps, axis=0)
    capacity = window + 30 if window else max(1, int(totals.max()))
    results = []
    for ops in (ReferenceOps(), TorchOps()):
        rng = np.random.default_rng(seed)
        cache, done, results_of_steps = ops.new_cache(3, capacity, KV_HEADS, WIDTH), [0, 0, 0], []
        for step in steps:
            slots = [slot for slot, n in enumerate(step) for _ in range(n)]
            positions = [done[slot] + i for slot, n in enumerate(step) for i in range(n)]
            done = [before + n for before, n in zip(done, step, strict=True)]
            n = len(slots)
            q, k, v = (normal(rng, n, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS))
            if n:
                at = ops.ints(slots), ops.ints(positions)
                if not known:
                    at = tuple(unknown(ops, ints) for ints in at)
                ops.append_(cache, ops.floats(k), ops.floats(v), *at)
                results_of_steps.append(ops.to_numpy(ops.attention(ops.floats(q), cache, *at, window)))
        results.append(results_of_steps)
    for want, got in zip(*results, strict=True):
        assert_close(got, want, 32)


def unknown(ops: Ops, ints: object) -> object:
    """The same integers, but only the device has them."""
    return Ints(ints.device.device, device=ints.device) if isinstance(ints, Ints) else ints


def test_a_cache_grows_when_it_is_told_to() -> None:
    cache = Cache(2, 5000, KV_HEADS, WIDTH, torch.device("cpu"), torch.float32)
    first = cache.places
    assert first < 5000
    cache.keys[:] = torch.randn(cache.keys.shape)
    before = cache.keys
    assert not cache.grow(first)
    assert cache.keys is before
    assert cache.grow(first + 1)
    assert cache.places == 2 * first
    assert torch.equal(cache.keys[:, :first], before)
    assert not cache.keys[:, first:].any()
    assert cache.grow(5000)
    assert cache.places == cache.capacity == 5000
    assert not cache.grow(9000)


def test_what_was_written_before_it_grew_is_seen_after() -> None:
    rng, results = np.random.default_rng(0), []
    n = Cache(1, 5000, 1, 8, torch.device("cpu"), torch.float32).places
    q, k, v = normal(rng, 3, 2, 8), normal(rng, n + 40, 1, 8), normal(rng, n + 40, 1, 8)
    for ops in (ReferenceOps(), TorchOps()):
        cache = ops.new_cache(1, 5000, 1, 8)
        for rows in (range(n), range(n, n + 40)):
            ops.reserve_(cache, rows.stop)
            part = slice(rows.start, rows.stop)
            ops.append_(cache, ops.floats(k[part]), ops.floats(v[part]), ops.ints([0] * len(rows)), ops.ints(rows))
        at = ops.ints([0] * 3), ops.ints([n - 5, n + 1, n + 39])
        results.append(ops.to_numpy(ops.attention(ops.floats(q), cache, *at, 0)))
    assert_close(results[1], results[0], 64)
