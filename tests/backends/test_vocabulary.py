"""Operations on logits: the largest of a row, and the denominator of its softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellmd.backends.ops import Ops
from cellmd.errors import ArgumentError
from naive_ops import EPS

INF, NAN = math.inf, math.nan

few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, INF, -INF, NAN, 1e-45, -1e-45, 3.4e38, -3.4e38])
any_value = st.floats(width=32) | few_values


def naive_top(row: list[float], k: int) -> list[int]:
    """What is not a number after all that is; larger before smaller; of equals the lower column."""
    return sorted(range(len(row)), key=lambda i: (math.isnan(row[i]), 0.0 if math.isnan(row[i]) else -row[i], i))[:k]


@settings(max_examples=200, deadline=None)
@given(st.lists(any_value, min_size=1, max_size=200), st.integers(1, 200))
@example([NAN] * 70 + [-INF], 2)
@example([0.0] * 64 + [-0.0] * 64 + [0.0], 100)
@example([-INF] * 130, 3)
def test_top_k_of_hostile_rows(ops: Ops, row: list[float], k: int) -> None:
    k = min(k, len(row))
    values, ids = (ops.to_numpy(x) for x in ops.top_k(ops.floats([row]), k))
    assert (values.dtype, ids.dtype) == (np.float32, np.int32)
    assert ids.tolist() == [naive_top(np.array(row, np.float32).tolist(), k)]
    np.testing.assert_array_equal(values[0], np.array(row, np.float32)[ids[0]])


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 4095, 4096, 4097, 50_000])
def test_top_k_of_several_rows_is_that_of_each(ops: Ops, rng: np.random.Generator, columns: int) -> None:
    x = rng.standard_normal((3, columns), dtype=np.float32)
    x[1] = np.round(x[1])  # many equals
    x[2] = np.sort(x[2])
    for k in {1, min(7, columns), min(65, columns), columns}:
        values, ids = (ops.to_numpy(y) for y in ops.top_k(ops.floats(x), k))
        want = np.argsort(-x, axis=1, kind="stable")[:, :k]
        assert np.array_equal(ids, want)
        assert np.array_equal(values, np.take_along_axis(x, want, axis=1))


@pytest.mark.parametrize("k", [0, -1, 41])
def test_top_k_of_none_or_too_many_is_refused(ops: Ops, k: int) -> None:
    with pytest.raises(ArgumentError, match=rf"{k} largest of 40 columns"):
        ops.top_k(ops.zeros((2, 40)), k)


@pytest.mark.parametrize("columns", [1, 15, 256, 257, 4097, 262_144])
@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
def test_log_sum_exp(ops: Ops, rng: np.random.Generator, columns: int, spread: float) -> None:
    x = rng.standard_normal((2, columns), dtype=np.float32) * np.float32(spread)
    got = ops.to_numpy(ops.log_sum_exp(ops.floats(x)))
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    terms = np.exp(shifted)
    want = np.log(terms.sum(axis=1))
    # Each term: its argument is rounded once, e is off by two roundings at most, short sums add 16; then the result.
    relative = ((np.abs(shifted) + 18) * EPS * terms).sum(axis=1) / terms.sum(axis=1)
    assert (np.abs(got - want) <= relative + EPS * want).all()
    assert (got >= 0).all()


@pytest.mark.parametrize("row", [[NAN, 1.0], [1.0] * 300 + [NAN], [-INF, -INF], [INF, 0.0], [NAN]])
def test_log_sum_exp_of_what_has_none(ops: Ops, row: list[float]) -> None:
    assert np.isnan(ops.to_numpy(ops.log_sum_exp(ops.floats([row])))).all()


def test_log_sum_exp_of_certainty_is_nothing(ops: Ops) -> None:
    row = [-INF] * 100 + [3.5] + [-INF] * 7
    assert ops.to_numpy(ops.log_sum_exp(ops.floats([row, [-3.4e38] * 107 + [3.4e38]]))).tolist() == [0.0, 0.0]
