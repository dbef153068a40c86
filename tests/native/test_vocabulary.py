"""The largest of logits and their exponentials' sum, on every instruction set. Their rules: tests/backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.backends.reference import create as create_reference
from cellmd.errors import ArgumentError

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps

hostile = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan])


@settings(max_examples=100, deadline=None)
@given(st.lists(hostile, min_size=1, max_size=300), st.integers(1, 300))
def test_top_k_is_the_references(ops: CpuOps, row: list[float], k: int) -> None:
    reference, k = create_reference(), min(k, len(row))
    want = reference.top_k(reference.floats([row]), k)
    got = [ops.to_numpy(x) for x in ops.top_k(ops.floats([row]), k)]
    np.testing.assert_array_equal(got[0], want[0])
    assert np.array_equal(got[1], want[1])


def test_top_k_of_a_vocabulary(ops: CpuOps) -> None:
    rng, reference = np.random.default_rng(1), create_reference()
    x = rng.standard_normal((2, 262_144), dtype=np.float32)
    x[1] = np.round(4 * x[1]) / 4
    for k in (1, 65, 5000):
        want = reference.top_k(x, k)
        got = [ops.to_numpy(y) for y in ops.top_k(ops.floats(x), k)]
        assert np.array_equal(got[0], want[0])
        assert np.array_equal(got[1], want[1])


def test_log_sum_exp_is_exact_to_rounding(ops: CpuOps) -> None:
    x = np.random.default_rng(2).standard_normal((3, 40_000), dtype=np.float32) * np.float32([[1], [5], [0]])
    got = ops.to_numpy(ops.log_sum_exp(ops.floats(x)))
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    want = np.log(np.exp(shifted).sum(axis=1))
    assert np.abs(got / want - 1).max() <= 4 * np.finfo(np.float32).eps


def test_bits_do_not_depend_on_threads_or_company(make: Callable[..., CpuOps]) -> None:
    x = np.random.default_rng(3).standard_normal((5, 70_001), dtype=np.float32) * 3

    def results(ops: CpuOps, rows: np.ndarray) -> list[np.ndarray]:
        tensor = ops.floats(rows)
        return [ops.to_numpy(y) for y in (*ops.top_k(tensor, 100), ops.log_sum_exp(tensor))]

    want = results(make(1), x)
    for threads in (1, 2, 3):
        for got, whole in zip(results(make(threads), x), want, strict=True):
            assert np.array_equal(got, whole)
        for row in range(5):
            for got, whole in zip(results(make(threads), x[row : row + 1]), want, strict=True):
                assert np.array_equal(got, whole[row : row + 1])


def test_a_view_of_columns_is_as_good(ops: CpuOps) -> None:
    x = np.random.default_rng(4).standard_normal((4, 700), dtype=np.float32)
    view = ops.columns(ops.floats(x), 100, 600)
    assert np.array_equal(ops.to_numpy(ops.top_k(view, 9)[1]), np.argsort(-x[:, 100:600], axis=1, kind="stable")[:, :9])
    same = ops.log_sum_exp(ops.floats(x[:, 100:600]))
    assert np.array_equal(ops.to_numpy(ops.log_sum_exp(view)), ops.to_numpy(same))


@pytest.mark.parametrize("k", [0, -5, 9, 1 << 40])
def test_what_does_not_fit_is_refused(ops: CpuOps, k: int) -> None:
    for call in (
        lambda: ops.top_k(ops.zeros((2, 8)), k),
        lambda: ops.top_k(ops.zeros((8,)), 1),
        lambda: ops.top_k(ops.ints([1, 2]), 1),
        lambda: ops.top_k(ops.zeros((2, 0)), 1),
        lambda: ops.log_sum_exp(ops.zeros((8,))),
        lambda: ops.log_sum_exp(ops.ints([1])),
        lambda: ops.log_sum_exp(ops.zeros((2, 0))),
    ):
        with pytest.raises(ArgumentError):
            call()


def test_no_rows_have_no_results(ops: CpuOps) -> None:
    assert [tuple(x.shape) for x in ops.top_k(ops.zeros((0, 8)), 3)] == [(0, 3), (0, 3)]
    assert tuple(ops.log_sum_exp(ops.zeros((0, 8))).shape) == (0,)
