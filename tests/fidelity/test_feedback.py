"""Rounding with error feedback: the quantity it is to lower, what it must keep, and what it is with nothing to use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cellmd.errors import CheckpointError
from cellmd.quant import Coding, codes_of, coding_problem, decode, encode
from cellmd.quant.feedback import Feedback, InputMoments, encode_with_feedback
from cellmd.quant.triangular import factorise, solve

CODINGS = [
    Coding("i4", "tile16", 32, "i8"),
    Coding("i4", "tile16", 64, "f16"),
    Coding("i4", "row", 0, "f16"),
    Coding("i8", "tile16", 64, "i8"),
]


def correlated_inputs(rng: np.random.Generator, n_rows: int, n_columns: int) -> np.ndarray:
    """Inputs as layers see them: a few directions and a few channels carry most of the energy."""
    directions = rng.standard_normal((n_columns, n_columns)) * rng.random(n_columns) ** 3
    channels = 1 + 20 * (rng.random(n_columns) > 0.97)
    return (rng.standard_normal((n_rows, n_columns)) @ directions * channels).astype(np.float32)


def feedback_of(stored: np.ndarray, source: np.ndarray, pool: ThreadPoolExecutor) -> Feedback:
    moments = InputMoments(stored.shape[1], pool)
    half = len(stored) // 2
    moments.add(stored[:half], source[:half] - stored[:half])
    moments.add(stored[half:], source[half:] - stored[half:])
    return Feedback.of(moments)


def output_error(weights: np.ndarray, decoded: np.ndarray, inputs: np.ndarray, source: np.ndarray) -> float:
    return float(np.mean((source @ weights.T - inputs @ decoded.T) ** 2))


@pytest.fixture(scope="module")
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (16, 200)])
def test_outputs_err_less_than_with_the_nearest_codes(
    coding: Coding, shape: tuple[int, int], pool: ThreadPoolExecutor
) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(shape).astype(np.float32)
    inputs, unseen = np.split(correlated_inputs(rng, 6000, shape[1]), 2)
    assert coding_problem(shape, coding) is None
    calibrated = encode_with_feedback("w", weights, coding, feedback_of(inputs, inputs, pool), pool)
    nearest = encode("w", weights, coding)
    errors = [output_error(weights, decode(packed), unseen, unseen) for packed in (calibrated, nearest)]
    assert errors[0] < (0.75 if coding.dtype == "i4" else 0.9) * errors[1]
    assert calibrated.n_bytes == nearest.n_bytes


def test_weights_move_to_answer_the_inputs_of_the_stored_model(pool: ThreadPoolExecutor) -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((32, 64)).astype(np.float32)
    source = correlated_inputs(rng, 4000, 64)
    stored = 0.9 * source + 0.1 * correlated_inputs(rng, 4000, 64)  # what rounding upstream left of them
    coding = Coding("i4", "tile16", 32, "f16")
    feedback = feedback_of(stored, source, pool)
    with_move, without = (
        encode_with_feedback("w", weights, coding, feedback, pool, drift_share=share) for share in (0.5, 0.0)
    )
    errors = [output_error(weights, decode(packed), stored, source) for packed in (with_move, without)]
    assert errors[0] < errors[1]


def test_independent_inputs_leave_the_nearest_codes(pool: ThreadPoolExecutor) -> None:
    """With H a multiple of the identity there is nothing to make up for: each code is the nearest to its weight."""
    weights = np.random.default_rng(3).standard_normal((48, 64)).astype(np.float32)
    moments = InputMoments(64, pool)
    moments.add(np.eye(64, dtype=np.float32))
    packed = encode_with_feedback("w", weights, Coding("i4", "row", 32, "f16"), Feedback.of(moments), pool)
    codes, decoded = codes_of(packed, slice(0, 48)).astype(np.float32), decode(packed)
    step = np.abs(np.divide(decoded, codes, out=np.zeros_like(decoded), where=codes != 0)).reshape(48, 2, 32).max(-1)
    inside = (codes > -8) & (codes < 7)
    limit = np.repeat(step, 32, axis=1) * np.float32(0.5 + 1e-5)
    assert (np.abs(weights - decoded) <= limit)[inside].all()


def test_columns_that_no_input_reaches_and_rows_of_zeros(pool: ThreadPoolExecutor) -> None:
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((17, 64)).astype(np.float32)
    weights[3] = 0
    weights[5, 32:] = 0
    inputs = correlated_inputs(rng, 500, 64)
    inputs[:, 10:20] = 0
    for inputs_seen in (inputs, np.zeros_like(inputs)):
        packed = encode_with_feedback(
            "w", weights, Coding("i4", "tile16", 32, "i8"), feedback_of(inputs_seen, inputs_seen, pool), pool
        )
        decoded = decode(packed)
        assert np.isfinite(decoded).all()
        assert not decoded[3].any()
        assert not decoded[5, 32:].any()
        assert np.mean((decoded - weights) ** 2) < 0.05


def test_the_result_does_not_depend_on_the_threads() -> None:
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((9000, 32)).astype(np.float32)
    inputs = correlated_inputs(rng, 300, 32)
    packed = []
    for n_threads in (1, 3):
        with ThreadPoolExecutor(n_threads) as threads:
            coding = Coding("i4", "tile16", 32, "i8")
            packed.append(encode_with_feedback("w", weights, coding, feedback_of(inputs, inputs, threads), threads))
    np.testing.assert_array_equal(packed[0].data, packed[1].data)


def test_weights_that_are_not_finite_are_refused(pool: ThreadPoolExecutor) -> None:
    weights = np.full((16, 32), np.nan, np.float32)
    with pytest.raises(CheckpointError, match="'w' holds NaN"):
        encode_with_feedback("w", weights, CODINGS[0], Feedback.of(InputMoments(32, pool)), pool)


def test_moments_are_those_of_all_rows_in_whatever_pieces(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    monkeypatch.setattr("cellmd.quant.feedback._MOST_ROWS_KEPT", 16)
    monkeypatch.setattr("cellmd.quant.feedback._STRIPE_COLUMNS", 24)
    rows = correlated_inputs(np.random.default_rng(7), 90, 40)
    moments = InputMoments(40, pool)
    for piece in np.split(rows, [1, 17, 70]):
        moments.add(piece)
    expected = rows.T.astype(np.float64) @ rows
    # Sums of 90 float32 products.
    tolerance = 90 * 2.0**-24 * (np.abs(rows).T.astype(np.float64) @ np.abs(rows)).max()
    np.testing.assert_allclose(moments.gram(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("way", ["inputs", "outputs"])
def test_weights_move_by_their_formula(way: str, pool: ThreadPoolExecutor) -> None:
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((16, 24)).astype(np.float32)
    stored = correlated_inputs(rng, 400, 24)
    source = stored + correlated_inputs(rng, 400, 24) / 8
    moments = InputMoments(24, pool)
    if way == "inputs":
        moments.add(stored, source - stored)
    else:
        moments.add(stored, source @ weights.T - stored @ weights.T)
    exact, difference = stored.astype(np.float64), source.astype(np.float64) - stored
    gram = exact.T @ exact
    gram += 0.1 * gram.trace() / 24 * np.eye(24)
    move = 0.5 * weights @ (difference.T @ exact) @ np.linalg.inv(gram)
    # What float32's rounding of sums of 400 products comes to, and the condition of the damped moments makes of it.
    tolerance = 2.0**-24 * 400 * np.linalg.cond(gram) * np.abs(move).max()
    assert tolerance < 0.1 * np.abs(move).max()
    np.testing.assert_allclose(Feedback.of(moments).moved(weights, 0.5, pool), weights + move, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [5, 256, 700])
def test_factors_by_blocks(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((n + 50, n))
    matrix = rows.T @ rows + n * np.eye(n)
    right = rng.standard_normal((n, 3))
    lower, solved = matrix.astype(np.float32), right.astype(np.float32)
    factorise(lower)
    solve(lower, solved)
    # Both are backward stable: at most n rounding errors of float32 for each number, times the condition.
    tolerance = n * 2.0**-24 * np.linalg.cond(matrix)
    exact = np.linalg.cholesky(matrix)
    assert np.linalg.norm(np.tril(lower) - exact) <= tolerance * np.linalg.norm(exact)
    expected = np.linalg.solve(matrix, right)
    assert np.linalg.norm(solved - expected) <= tolerance * np.linalg.norm(expected)


def test_a_matrix_that_is_not_positive_definite_has_no_factor() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        factorise(np.diag(np.array([1, -1], np.float32)))
