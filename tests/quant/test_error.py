"""Error figures: parts add up, blocks do not matter, JSON is JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given

from cellmd.errors import ArgumentError
from cellmd.quant import Coding, ErrorStats, compare, encode, encode_block
from cellmd.quant import compare as compare_tensor
from quant.strategies import matrices


@given(matrices())
def test_figures_are_their_definitions_and_parts_add_up(weights) -> None:
    decoded = weights + np.float32(0.25)
    stats = ErrorStats.of(decoded, weights)
    difference = (decoded - weights).astype(np.float64)
    assert stats.max_abs == np.abs(difference).max()
    assert stats.rms == pytest.approx(math.sqrt(np.mean(difference**2)))
    joined = ErrorStats.of(decoded[:1], weights[:1]) + ErrorStats.of(decoded[1:], weights[1:])
    assert joined.count == stats.count
    assert joined.error_energy == pytest.approx(stats.error_energy)
    assert joined.signal_energy == pytest.approx(stats.signal_energy)


def test_snr_of_nothing_lost_is_infinite_and_null_in_json() -> None:
    exact = compare(encode("t", np.ones(4), Coding("f16")), np.ones(4, np.float32))
    assert exact.snr_db == math.inf
    assert json.loads(json.dumps(exact.as_json(), allow_nan=False)) == {"max_abs": 0.0, "rms": 0.0, "snr_db": None}


@pytest.mark.parametrize("bound", [np.inf, -np.inf])
def test_an_infinite_bound_that_is_kept_is_no_error(bound: float) -> None:
    source = np.float32(bound)
    packed = encode("bound", source, Coding("f16"))
    assert compare(packed, source) == encode_block(source, Coding("f16")).error == ErrorStats(count=1)
    lost = ErrorStats.of(np.array([source]), np.ones(1, np.float32))
    assert lost.as_json() == {"max_abs": None, "rms": None, "snr_db": None}


def test_a_lazy_source_is_read_in_blocks_of_rows() -> None:
    weights = np.random.default_rng(0).standard_normal((3000, 4096)).astype(np.float32)
    asked = []

    class Lazy:
        shape = weights.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            asked.append(rows.stop - rows.start)
            return weights[rows].astype(np.float64)

    packed = encode("t", weights, Coding("bf16"))
    assert compare_tensor(packed, Lazy()).snr_db == pytest.approx(compare(packed, weights).snr_db)
    assert sum(asked) == 3000
    assert max(asked) <= 1024
    assert compare(encode("b", np.float32(2), Coding("f16")), np.float32(2)).max_abs == 0


def test_another_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\(4,\).*\(5,\)"):
        compare(encode("t", np.ones(4), Coding("f16")), np.ones(5, np.float32))
