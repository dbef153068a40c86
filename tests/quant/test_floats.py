"""bf16 as bits, and float tensors as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellmd.errors import CheckpointError
from cellmd.quant import Coding, decode, encode
from cellmd.quant.floats import bf16_to_f32, f32_to_bf16

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.uint16, st.integers(0, 40)))
def test_every_bf16_number_survives_the_way_through_f32(bits: np.ndarray) -> None:
    values = bf16_to_f32(bits)
    back = f32_to_bf16(values)
    nan = np.isnan(values)
    assert np.array_equal(back[~nan], bits[~nan])
    assert np.isnan(bf16_to_f32(back[nan])).all()


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=finite))
def test_bf16_is_the_nearest_ties_to_even(values: np.ndarray) -> None:
    bits = f32_to_bf16(values).astype(np.int64)
    exact = values.astype(np.float64)

    def value_of(magnitude_step: int) -> np.ndarray:
        neighbour = np.clip((bits & 0x7FFF) + magnitude_step, 0, 0x7F80).astype(np.uint16)
        # The step beyond the largest number counts as the number that would follow it.
        magnitude = np.where(neighbour == 0x7F80, 2.0**128, bf16_to_f32(neighbour).astype(np.float64))
        return np.where(bits & 0x8000, -magnitude, magnitude)

    chosen = np.abs(value_of(0) - exact)
    for step in (-1, 1):
        other = np.abs(value_of(step) - exact)
        assert (chosen <= other).all()
        tie = (chosen == other) & (value_of(step) != value_of(0))
        assert (bits[tie] % 2 == 0).all()


@given(
    hnp.arrays(
        np.float16, hnp.array_shapes(min_dims=0, max_dims=4, max_side=5), elements=st.floats(-60000, 60000, width=16)
    )
)
def test_f16_numbers_are_kept_exactly_by_every_float_coding_that_can(values: np.ndarray) -> None:
    for dtype in ("f16", "f32"):
        packed = encode("t", values.astype(np.float32), Coding(dtype))
        assert packed.data.nbytes == values.size * (2 if dtype == "f16" else 4)
        assert np.array_equal(decode(packed), values.astype(np.float32))
        assert decode(packed).shape == values.shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_tensors_with_numbers_that_are_none_are_refused_by_name(dtype: str, bad: float) -> None:
    with pytest.raises(CheckpointError, match=r"a\.weight"):
        encode("a.weight", np.array([1.0, bad]), Coding(dtype))


def test_a_single_number_may_be_infinite_but_not_nan() -> None:
    bound = decode(encode("bound", np.float32(-np.inf), Coding("f16")))
    assert bound.shape == ()
    assert bound == -np.inf
    with pytest.raises(CheckpointError, match="bound"):
        encode("bound", np.float32(np.nan), Coding("f16"))


def test_numbers_beyond_f16_are_refused_with_the_way_out() -> None:
    with pytest.raises(CheckpointError, match="beyond the range of f16; store it as bf16 or f32"):
        encode("t", np.array([1e5, 1.0]), Coding("f16"))
    assert decode(encode("t", np.array([1e5, 1.0]), Coding("f32")))[0] == 1e5
