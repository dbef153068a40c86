"""Rounding with error feedback: the quantity it is to lower, what it must keep, and what it is with nothing to use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cellmd.errors import CheckpointError
from cellmd.quant import Coding, codes_of, coding_problem, decode, encode
from cellmd.quant.feedback import InputMoments, _moved, encode_with_feedback

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


def moments_of(stored: np.ndarray, source: np.ndarray) -> InputMoments:
    moments = InputMoments(stored.shape[1])
    half = len(stored) // 2
    moments.add(stored[:half], source[:half])
    moments.add(stored[half:], source[half:])
    return moments


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
    calibrated = encode_with_feedback("w", weights, coding, moments_of(inputs, inputs), pool)
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
    moments = moments_of(stored, source)
    with_move, without = (
        encode_with_feedback("w", weights, coding, moments, pool, drift_share=share) for share in (0.5, 0.0)
    )
    errors = [output_error(weights, decode(packed), stored, source) for packed in (with_move, without)]
    assert errors[0] < errors[1]


def test_independent_inputs_leave_the_nearest_codes(pool: ThreadPoolExecutor) -> None:
    """With H a multiple of the identity there is nothing to make up for: each code is the nearest to its weight."""
    weights = np.random.default_rng(3).standard_normal((48, 64)).astype(np.float32)
    moments = InputMoments(64)
    moments.add(np.eye(64, dtype=np.float32), np.eye(64, dtype=np.float32))
    packed = encode_with_feedback("w", weights, Coding("i4", "row", 32, "f16"), moments, pool)
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
            "w", weights, Coding("i4", "tile16", 32, "i8"), moments_of(inputs_seen, inputs_seen), pool
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
            packed.append(encode_with_feedback("w", weights, coding, moments_of(inputs, inputs), threads))
    np.testing.assert_array_equal(packed[0].data, packed[1].data)


def test_weights_that_are_not_finite_are_refused(pool: ThreadPoolExecutor) -> None:
    weights = np.full((16, 32), np.nan, np.float32)
    with pytest.raises(CheckpointError, match="'w' holds NaN"):
        encode_with_feedback("w", weights, CODINGS[0], InputMoments(32), pool)


@pytest.mark.parametrize("n_columns", [8, 24])
def test_either_way_of_moving_weights_is_its_formula(n_columns: int) -> None:
    rng = np.random.default_rng(n_columns)
    weights = rng.standard_normal((16, n_columns)).astype(np.float32)
    stored = correlated_inputs(rng, 400, n_columns)
    gram = (stored.T @ stored).astype(np.float64) + np.eye(n_columns)
    drift = rng.standard_normal((n_columns, n_columns))
    expected = weights + 0.5 * weights @ drift @ np.linalg.inv(gram)
    # Sums of n_columns float32 products, and what the condition makes of float64's rounding.
    tolerance = 2.0**-24 * n_columns * np.abs(expected).max() + 2.0**-52 * np.linalg.cond(gram) * np.abs(drift).max()
    np.testing.assert_allclose(_moved(weights, gram, drift, 0.5), expected, rtol=0, atol=4 * tolerance)
