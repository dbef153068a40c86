"""The native encoder gives the bytes and the error figures that the specification in NumPy does, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellmd import _native
from cellmd.errors import ArgumentError
from cellmd.quant import Coding, int4, sizes
from cellmd.quant.floats import STORED, bf16_to_f32, f32_to_bf16
from cellmd.quant.rounding import Rounding, round_matrix
from quant.strategies import codings, matrices

NO_SHRINKS = np.empty(0, np.float32)


def buffers(shape: tuple[int, int], coding: Coding) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    expected, stored = sizes(shape, coding), STORED[coding.scale_dtype]
    return (
        np.full(expected.data, 0xAA, np.uint8),
        np.full(expected.scales, 0xAA, np.uint8).view(stored),
        np.full(expected.row_factors // 4, np.nan, np.float32) if expected.row_factors else None,
    )


def native(rows: np.ndarray, coding: Coding, search: bool, data, scales, row_factors) -> Rounding:
    shrinks = int4.shrinks(coding.group_size or rows.shape[1]) if search and coding.dtype == "i4" else NO_SHRINKS
    facts = coding.dtype, coding.layout, coding.group_size, coding.scale_dtype
    return Rounding(*_native.encode_matrix(rows, *facts, shrinks, data, scales.view(np.uint8), row_factors))


def hold_equal(rows: np.ndarray, coding: Coding, search: bool) -> None:
    found, wanted = buffers(rows.shape, coding), buffers(rows.shape, coding)
    figures = native(rows, coding, search, *found)
    weights = bf16_to_f32(rows) if rows.dtype == np.uint16 else rows
    expected = round_matrix(weights, coding, search, *wanted)
    assert figures.finite == expected.finite
    if not expected.finite:
        return
    assert (figures.in_range, figures.largest) == (expected.in_range, expected.largest)
    if not expected.in_range:
        return
    assert figures == expected
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None and theirs is None) or ours.tobytes() == theirs.tobytes()


@pytest.fixture(autouse=True)
def _on(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLMD_ISA", isa)


@settings(deadline=None, max_examples=150)
@given(matrices(max_columns=600), codings(), st.booleans(), st.booleans())
def test_bytes_and_figures_are_those_of_the_specification(weights, coding, search, bf16) -> None:
    hold_equal(f32_to_bf16(weights) if bf16 else weights, coding, search)


EXTREMES = [
    0.0,
    -0.0,
    1e-45,
    2.0**-101,
    2.0**-100,
    2.0**-99,
    3e-39,
    1e-7,
    1.0,
    65504.0,
    65520.0,
    7e4,
    5e5,
    3e38,
    3.4e38,
]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from([*EXTREMES, *(-x for x in EXTREMES), np.nan, np.inf]), min_size=1, max_size=90),
    st.integers(1, 3),
    codings(),
    st.booleans(),
)
@example([1.0, -1.0] * 16, 2, Coding("i4", "row", 32, "f16"), True)
@example([2.0**-100] * 40, 2, Coding("i8", "tile16", 32, "f16"), True)
def test_extreme_weights_too(values: list[float], n_rows: int, coding: Coding, search: bool) -> None:
    rows = np.array(values, np.float32)
    hold_equal(np.stack([np.roll(rows, i) for i in range(n_rows)]), coding, search)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 20), st.integers(1, 300), codings(("i4",)), st.integers(0, 2**32 - 1))
def test_weights_on_a_grid_too(largest: int, n_rows: int, n_columns: int, coding: Coding, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.001, 0.1, (n_rows, -(-n_columns // 32))) * rng.choice([-1, 1], (n_rows, 1))
    codes = rng.integers(-largest, largest + 1, (n_rows, n_columns))
    weights = codes * np.repeat(scales.astype(np.float16), 32, axis=1)[:, :n_columns].astype(np.float32)
    weights[rng.random(n_rows) < 0.2] *= rng.uniform(0.9, 1.1, n_columns).astype(np.float32)
    hold_equal(f32_to_bf16(weights.astype(np.float32)), coding, True)


@pytest.mark.parametrize("coding", [Coding("i4", "tile16", 128, "i8"), Coding("i4", "row", 256, "i8")])
def test_matrices_of_full_width_too(coding: Coding) -> None:
    weights = np.random.default_rng(7).standard_normal((17, 8960), np.float32) * np.float32(0.02)
    hold_equal(f32_to_bf16(weights), coding, True)


def test_what_does_not_fit_is_refused() -> None:
    coding = Coding("i4", "tile16", 32, "i8")
    rows = np.ones((20, 40), np.float32)
    data, scales, factors = buffers(rows.shape, coding)
    for wrong in (
        (rows, coding, data[:-1], scales, factors),
        (rows, coding, data, scales[:-16], factors),
        (rows, coding, data, scales, None),
        (rows, coding, data, scales, factors[:-1]),
        (rows[:0], coding, data, scales, factors),
        (rows[:16], coding, data, scales, factors),
        (rows, Coding("i4", "tile16", 48, "i8"), data, scales, factors),
        (rows, Coding("i2", "tile16", 32, "i8"), data, scales, factors),
        (rows, Coding("i4", "tile32", 32, "i8"), data, scales, factors),
        (rows, Coding("i4", "tile16", 32, "u8"), data, scales, factors),
        (rows.astype(np.float16), coding, data, scales, factors),
    ):
        with pytest.raises(ArgumentError):
            native(wrong[0], wrong[1], True, *wrong[2:])
    with pytest.raises(TypeError):
        native(rows[:, ::2], coding, True, data, scales, factors)
    facts = coding.dtype, coding.layout, coding.group_size, coding.scale_dtype
    with pytest.raises(ArgumentError, match="scales to try"):
        _native.encode_matrix(rows, *facts, np.ones(16, np.float32), data, scales.view(np.uint8), factors)
