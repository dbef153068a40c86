"""What encoding promises: the nearest codes, parts that join, grids that are found, no worse than plain rounding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cellmd.errors import ArgumentError, CheckpointError
from cellmd.quant import (
    Coding,
    PackedTensor,
    codes_of,
    compare,
    decode,
    decode_rows,
    encode,
    encode_block,
    groups_of,
    scales_of,
    sizes,
)
from cellmd.quant.floats import from_stored, to_stored
from cellmd.quant.layouts import pack, pack_per_group
from cellmd.quant.schemes import QUANTISERS
from quant.strategies import codings, matrices, shapes

ROUNDING = 2.0**-21
"""Relative: a product with a rounded reciprocal and two more roundings, each at most 2^-24."""


def per_column(packed: PackedTensor) -> np.ndarray:
    """The scale of every weight, (N, K)."""
    n_rows, n_columns = packed.shape
    group = packed.coding.group_size or n_columns
    return np.repeat(scales_of(packed, slice(0, n_rows)), group, axis=1)[:, :n_columns]


@settings(deadline=None)
@given(matrices(), codings(), st.booleans())
def test_each_weight_gets_the_nearest_code_of_its_stored_scale(weights, coding, search) -> None:
    packed = encode("w", weights, coding, search=search)
    scales, quantiser = per_column(packed).astype(np.float64), QUANTISERS[coding.dtype]
    error = np.abs(decode(packed) - weights.astype(np.float64))
    safe = np.where(scales == 0, 1, scales)
    ideal = np.clip(np.rint(weights / safe), quantiser.low, quantiser.high) * scales
    largest_code = -quantiser.low
    assert (error <= np.abs(ideal - weights) + ROUNDING * largest_code * np.abs(scales)).all()
    unclipped = (weights / safe >= quantiser.low - 0.5) & (weights / safe <= quantiser.high + 0.5) & (scales != 0)
    assert (error[unclipped] <= (0.5 + ROUNDING * largest_code) * np.abs(scales[unclipped])).all()
    if not quantiser.clips:
        assert unclipped[weights != 0].all()


@settings(deadline=None)
@given(matrices(max_rows=70), codings(), st.data())
def test_blocks_of_rows_join_to_the_whole(weights, coding, data) -> None:
    whole = encode_block(weights, coding)
    seam = 16 if coding.layout == "tile16" else 1
    cut = data.draw(st.integers(0, len(weights) // seam)) * seam
    parts = [encode_block(rows, coding) for rows in (weights[:cut], weights[cut:]) if len(rows)]
    for part in ("data", "scales", "row_factors"):
        joined = [getattr(block, part) for block in parts]
        expected = getattr(whole, part)
        if expected is None:
            assert joined == [None] * len(joined)
        else:
            assert np.array_equal(np.concatenate(joined), expected)
    if 0 < cut < len(weights):
        before = sizes((cut, weights.shape[1]), coding)
        assert before.data == parts[0].data.nbytes
        assert before.scales == parts[0].scales.nbytes


def test_blocks_join_at_full_width_and_in_threads() -> None:
    weights = np.random.default_rng(1).standard_normal((160, 8960), dtype=np.float32)
    coding = Coding("i4", "row", 256, "i8")
    whole = encode_block(weights, coding)
    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(lambda start: encode_block(weights[start : start + 16], coding), range(0, 160, 16)))
    assert np.array_equal(np.concatenate([block.data for block in blocks]), whole.data)
    assert np.array_equal(np.concatenate([block.scales for block in blocks]), whole.scales)
    assert np.array_equal(np.concatenate([block.row_factors for block in blocks]), whole.row_factors)


@settings(deadline=None)
@given(matrices(), codings(), st.data())
def test_sizes_errors_and_rows_agree_with_the_encoding(weights, coding, data) -> None:
    block = encode_block(weights, coding)
    packed = PackedTensor("w", weights.shape, coding, block.data, block.scales, block.row_factors)
    expected = sizes(weights.shape, coding)
    assert (block.data.nbytes, block.scales.nbytes) == (expected.data, expected.scales)
    assert (0 if block.row_factors is None else block.row_factors.nbytes) == expected.row_factors
    assert packed.n_bytes == expected.total
    measured = compare(packed, weights)
    assert block.error.count == measured.count == weights.size
    assert block.error.max_abs == pytest.approx(measured.max_abs, rel=1e-5, abs=1e-30)
    assert block.error.rms == pytest.approx(measured.rms, rel=1e-4, abs=1e-30)
    rows = np.array(data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=5)), np.int64)
    assert np.array_equal(decode_rows(packed, rows), decode(packed)[rows])
    start = data.draw(st.integers(0, len(weights)))
    assert np.array_equal(decode_rows(packed, slice(start, None)), decode(packed)[start:])


@st.composite
def grids(draw: st.DrawFn) -> tuple[Coding, np.ndarray, np.ndarray]:
    """A coding, with codes and scales of weights that it can hold exactly: each group has -8 and 7 (int8: 127)."""
    coding, shape = draw(codings()), draw(shapes())
    assume(shape[1] % (coding.group_size or shape[1] + 1) != 1)  # a lone weight lies on many grids
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group, n_groups = coding.group_size or shape[1], groups_of(shape[1], coding)
    codes = rng.integers(-8, 8, shape) if coding.dtype == "i4" else rng.integers(-127, 128, shape)
    codes[:, ::group] = -8 if coding.dtype == "i4" else 127
    codes[:, 1::group] = 7
    if coding.scale_dtype == "i8":
        steps = rng.integers(1, 128, (shape[0], n_groups))
        steps[:, 0] = 127
        if coding.dtype == "i4":
            steps *= rng.choice([-1, 1], steps.shape)
        scales = (steps * rng.uniform(1e-4, 1, (shape[0], 1)).astype(np.float32)).astype(np.float32)
    else:
        sign = rng.choice([-1, 1], (shape[0], n_groups)) if coding.dtype == "i4" else 1
        wanted = sign * rng.uniform(1e-3, 1, (shape[0], n_groups))
        scales = from_stored(to_stored(wanted.astype(np.float32), coding.scale_dtype), coding.scale_dtype)
    return coding, codes.astype(np.int8), scales


@settings(deadline=None)
@given(grids())
def test_weights_on_a_grid_are_found_again(grid) -> None:
    coding, codes, scales = grid
    n_rows, n_columns = codes.shape
    weights = codes * np.repeat(scales, coding.group_size or n_columns, axis=1)[:, :n_columns]
    packed = encode("w", weights, coding)
    assert np.array_equal(codes_of(packed, slice(0, n_rows)), codes)
    # f16 and bf16 scales come back as they were; f32 and row factors but for the rounding of a quotient of sums.
    tolerance = 0 if coding.scale_dtype in ("f16", "bf16") else 2.0**-20
    assert np.allclose(scales_of(packed, slice(0, n_rows)), scales, rtol=tolerance, atol=0)


@pytest.mark.parametrize("layout", ["row", "tile16"])
def test_a_symmetric_grid_without_the_lowest_code_is_found_too(layout: str) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-7, 8, (32, 128)).astype(np.int8)
    codes[:, ::32] = rng.choice([-7, 7], (32, 4))
    weights = codes * np.float32(0.015625)
    packed = encode("w", weights, Coding("i4", layout, 32, "bf16"))
    assert np.array_equal(codes_of(packed, slice(0, 32)), codes)
    assert np.array_equal(decode(packed), weights)


def rounded_to_nearest(weights: np.ndarray, group: int) -> float:
    """Squared error of max / 7 with float32 scales."""
    grouped = weights.reshape(len(weights), -1, group).astype(np.float64)
    scales = np.abs(grouped).max(axis=-1, keepdims=True) / 7
    return float(np.square(np.rint(grouped / scales) * scales - grouped).sum())


@pytest.mark.parametrize("tails", ["normal", "laplace", "t5"])
@pytest.mark.parametrize("group", [32, 64, 128, 256, 0])
@pytest.mark.parametrize("scale_dtype", ["f16", "bf16", "i8"])
def test_the_search_beats_rounding_to_nearest(group: int, scale_dtype: str, tails: str) -> None:
    rng = np.random.default_rng(5)
    shape = (64, 1536)
    draws = {
        "normal": rng.standard_normal,
        "laplace": lambda n: rng.laplace(size=n),
        "t5": lambda n: rng.standard_t(5, n),
    }
    weights = (0.02 * draws[tails](shape)).astype(np.float32)
    coding = Coding("i4", "row", group, scale_dtype)
    searched = encode_block(weights, coding).error
    assert searched.error_energy < 0.86 * rounded_to_nearest(weights, group or shape[1])
    assert searched.error_energy < encode_block(weights, coding, search=False).error.error_energy


@settings(deadline=None)
@given(matrices(), st.sampled_from([32, 128, 0]))
def test_no_group_is_served_worse_than_by_rounding(weights, group) -> None:
    """With signed float32 scales the plain scale is among the candidates, so every group gains or stays."""
    coding = Coding("i4", "row", group, "f32")
    error = np.square(decode(encode("w", weights, coding)) - weights.astype(np.float64))
    n_columns = weights.shape[1]
    for start in range(0, n_columns, group or n_columns):
        part = weights[:, start : start + (group or n_columns)].astype(np.float64)
        scale = np.abs(part).max(axis=1, keepdims=True) / 7
        plain = np.square(np.rint(part / np.where(scale == 0, 1, scale)) * scale - part).sum(axis=1)
        found = error[:, start : start + part.shape[1]].sum(axis=1)
        energy = np.square(part).sum(axis=1)
        assert (found <= plain + 2.0**-20 * energy).all()  # gains are compared in float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_weights_that_are_no_numbers_are_refused_by_name(dtype: str, bad: float) -> None:
    weights = np.ones((20, 40), np.float32)
    weights[17, 33] = bad
    with pytest.raises(CheckpointError, match=r"layers\.3\.weight.*NaN or infinite"):
        encode("layers.3.weight", weights, Coding(dtype, "tile16", 32, "f16"))


def test_scales_beyond_f16_are_refused_with_the_way_out() -> None:
    weights = np.full((2, 32), 1e6, np.float32)
    with pytest.raises(CheckpointError, match="beyond the range of f16 scales; use bf16"):
        encode("w", weights, Coding("i4", "row", 32, "f16"))
    assert compare(encode("w", weights, Coding("i4", "row", 32, "bf16")), weights).snr_db > 40


@pytest.mark.parametrize("scale_dtype", ["f16", "bf16", "f32", "i8"])
@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-31, 1e-7])
def test_the_smallest_weights_become_zero_or_right_but_never_nan(magnitude: float, scale_dtype: str) -> None:
    weights = np.full((3, 40), magnitude, np.float32)
    weights[1] *= -1
    for dtype in ("i4", "i8"):
        decoded = decode(encode("w", weights, Coding(dtype, "tile16", 32, scale_dtype)))
        assert (np.abs(decoded - weights) <= max(1e-30, 2.0**-24)).all()
        if magnitude == 1e-7 and scale_dtype != "f16":
            assert np.allclose(decoded, weights, rtol=0.01)


@pytest.mark.parametrize(
    ("shape", "coding", "reason"),
    [
        ((4, 4, 4), Coding("i4", "row", 32, "f16"), "takes 2 dimensions"),
        ((4, 4), Coding("i4", "row", 48, "f16"), "group_size 48"),
        ((4, 4), Coding("i4", "row", 32, None), "scale_dtype None"),
        ((4, 4), Coding("f16", "tile16"), "the layout row"),
        ((4, 4), Coding("f16", "row", 32, "f16"), "no scales"),
        ((4, 4), Coding("i2", "row", 32, "f16"), "unknown dtype"),  # type: ignore[arg-type]
        ((4, 4), Coding("i4", "tile32", 32, "f16"), "unknown layout"),  # type: ignore[arg-type]
    ],
)
def test_codings_that_do_not_exist_are_refused(shape, coding, reason) -> None:
    with pytest.raises(ArgumentError, match=reason):
        encode("w", np.zeros(shape, np.float32), coding)


def test_files_of_version_1_decode_with_scales_for_whole_rows() -> None:
    """Its recipe: scale = max|row| / 7 in f16, values -7 .. 7, the even column in the low nibble."""
    weights = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    scales = (np.abs(weights).max(axis=1) / 7).astype(np.float16)
    codes = np.clip(np.rint(weights / scales[:, None].astype(np.float32)), -7, 7).astype(np.int8)
    stored = pack_per_group(scales[:, None], "row")
    packed = PackedTensor("w", (5, 7), Coding("i4", "row", 0, "f16"), pack(codes, "i4", "row"), stored)
    assert np.array_equal(decode(packed), codes * scales[:, None].astype(np.float32))
