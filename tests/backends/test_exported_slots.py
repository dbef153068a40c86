"""What a slot holds, exported and taken in again: by another cache, another slot, after rings have gone round."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.backends import create, installed
from cellmd.backends.ops import Ops
from cellmd.errors import ArgumentError

TORCH = pytest.param("torch", marks=pytest.mark.reference)  # the GPU backend on torch's CPU device


@pytest.fixture(params=[*installed(), "cpu f16", "cpu i8", TORCH], scope="module")
def ops(request: pytest.FixtureRequest) -> Ops:
    """Every backend that exports slots; the native one with every type of its cache."""
    name, _, dtype = request.param.partition(" ")
    if name == "cpu" and name in installed():
        return import_module("cellmd.backends.cpu").create(1, dtype or "f32")
    if name == "torch":
        return import_module("cellmd.backends.cuda.plain").TorchOps("cpu")
    return create(name if name in installed() else "reference")


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def append(ops: Ops, cache: object, slot: int, start: int, k: np.ndarray, v: np.ndarray) -> None:
    ops.begin()
    at = ops.ints([slot] * len(k)), ops.ints(range(start, start + len(k)))
    ops.append_(cache, ops.floats(k), ops.floats(v), *at)


def look(ops: Ops, cache: object, slot: int, row: int, q: np.ndarray, window: int) -> np.ndarray:
    ops.begin()
    at = ops.ints([slot]), ops.ints([row])
    return np.asarray(ops.to_numpy(ops.attention(ops.floats(q[None]), cache, *at, window)))


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 250), kept=st.integers(0, 40), window=st.sampled_from([0, 9]), head_dim=st.sampled_from([16, 24])
)
def test_a_slot_taken_in_goes_on_like_its_source(ops: Ops, n: int, kept: int, window: int, head_dim: int) -> None:
    """n positions are written; another sequence goes on from them, or from a little before their end."""
    rng = np.random.default_rng(n)
    capacity = 64 if window else 256
    n_kept = max(1, n - kept)
    q, k, v = (normal(rng, n_kept + 5, heads, head_dim) for heads in (4, 2, 2))
    beyond = normal(rng, n, 2, head_dim)
    source, target = ops.new_cache(3, capacity, 2, head_dim), ops.new_cache(2, capacity, 2, head_dim)
    for start in range(0, n, 10):
        rows = slice(start, min(start + 10, n))
        length = rows.stop - rows.start
        keys = np.concatenate([k[:n_kept], beyond])[rows]
        append(ops, source, 2, start, keys, keys[:, ::-1] if length else keys)
    append(ops, target, 0, 0, beyond[:5], beyond[:5])
    exported = ops.export_slot(source, 2, n)
    assert exported.dtype == np.uint8
    assert exported.ndim == 1
    ops.import_slot_(target, 0, n, exported.copy())
    assert np.array_equal(ops.export_slot(target, 0, n), exported)
    for cache, slot in ((source, 2), (target, 0)):
        append(ops, cache, slot, n_kept, k[n_kept:], v[n_kept:])
    for row in range(n_kept, n_kept + 5):
        assert np.array_equal(look(ops, source, 2, row, q[row], window), look(ops, target, 0, row, q[row], window))


def test_what_does_not_fit_is_refused(ops: Ops) -> None:
    cache = ops.new_cache(2, 1024, 2, 16)
    exported = ops.export_slot(cache, 0, 20)
    with pytest.raises(ArgumentError, match="bytes"):
        ops.import_slot_(cache, 0, 20, exported[:-1])
    with pytest.raises(ArgumentError, match="bytes"):
        ops.import_slot_(cache, 0, 600, exported)
    assert len(ops.export_slot(cache, 0, 0)) == 0


def test_a_larger_cache_takes_what_a_smaller_one_held(ops: Ops) -> None:
    rng = np.random.default_rng(1)
    k, v, q = normal(rng, 40, 2, 16), normal(rng, 40, 2, 16), normal(rng, 4, 16)
    small, large = ops.new_cache(1, 64, 2, 16), ops.new_cache(1, 1024, 2, 16)
    append(ops, small, 0, 0, k, v)
    ops.import_slot_(large, 0, 40, ops.export_slot(small, 0, 40))
    assert np.array_equal(look(ops, small, 0, 39, q, 0), look(ops, large, 0, 39, q, 0))
