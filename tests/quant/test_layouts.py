"""Where each value lies, against the definition written out value by value, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmd.quant.layouts import pack, pack_per_group, padded_rows, row_bytes, unpack, unpack_per_group
from quant.strategies import shapes

dtypes = st.sampled_from(["i4", "i8"])
layouts = st.sampled_from(["row", "tile16"])


def random_codes(shape: tuple[int, int], dtype: str, seed: int) -> np.ndarray:
    low, high = (-8, 8) if dtype == "i4" else (-128, 128)
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int8)


def packed_by_definition(codes: np.ndarray, dtype: str, layout: str) -> np.ndarray:
    """design: one loop over stored bytes, in the words of docs/format.md."""
    n_rows, n_columns = codes.shape

    def value(row: int, column: int) -> int:
        return int(codes[row, column]) if row < n_rows and column < n_columns else 0

    stored = []
    if layout == "row":
        for row in range(n_rows):
            if dtype == "i8":
                stored += [value(row, column) % 256 for column in range(n_columns)]
            else:
                pairs = range(0, n_columns, 2)
                stored += [(value(row, c) + 8) | (value(row, c + 1) + 8) << 4 for c in pairs]
        return np.array(stored, np.uint8)
    width = 8 if dtype == "i4" else 4
    for first_row in range(0, n_rows, 16):
        for first_column in range(0, n_columns, width):
            for row in range(first_row, first_row + 16):
                for j in range(4):
                    if dtype == "i8":
                        stored.append(value(row, first_column + j) % 256)
                    else:
                        low, high = value(row, first_column + j), value(row, first_column + j + 4)
                        stored.append((low + 8) | (high + 8) << 4)
    return np.array(stored, np.uint8)


@given(shapes(), dtypes, layouts, st.integers(0, 2**32))
def test_packing_is_the_definition_and_unpacking_its_inverse(shape, dtype, layout, seed) -> None:
    codes = random_codes(shape, dtype, seed)
    packed = pack(codes, dtype, layout)
    assert np.array_equal(packed, packed_by_definition(codes, dtype, layout))
    assert packed.nbytes == padded_rows(shape[0], layout) * row_bytes(shape[1], dtype, layout)
    assert np.array_equal(unpack(packed, shape, dtype, layout, slice(0, shape[0])), codes)


@given(shapes(), dtypes, layouts, st.data())
def test_some_rows(shape, dtype, layout, data) -> None:
    codes = random_codes(shape, dtype, 0)
    packed = pack(codes, dtype, layout)
    start = data.draw(st.integers(0, shape[0] - 1))
    stop = data.draw(st.integers(start + 1, shape[0]))
    assert np.array_equal(unpack(packed, shape, dtype, layout, slice(start, stop)), codes[start:stop])
    rows = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=8)), np.int64)
    assert np.array_equal(unpack(packed, shape, dtype, layout, rows), codes[rows])


@given(shapes(max_columns=9), layouts, st.sampled_from([np.uint8, np.float16, np.float32]))
def test_scales_lie_by_tiles_too(shape, layout, dtype) -> None:
    n_rows, n_groups = shape
    scales = np.arange(1, 1 + n_rows * n_groups).reshape(shape).astype(dtype)
    flat = pack_per_group(scales, layout)
    if layout == "tile16":
        tiles = flat.reshape(-1, n_groups, 16)
        for row in range(len(tiles) * 16):
            expected = scales[row] if row < n_rows else np.zeros(n_groups, dtype)
            assert np.array_equal(tiles[row // 16, :, row % 16], expected)
    else:
        assert np.array_equal(flat, scales.reshape(-1))
    assert np.array_equal(unpack_per_group(flat, shape, layout, slice(0, n_rows)), scales)
    assert np.array_equal(unpack_per_group(flat, shape, layout, np.array([n_rows - 1, 0])), scales[[n_rows - 1, 0]])


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_a_tile_of_ones_is_one_cache_line_of_a_row_each(dtype: str) -> None:
    """The example in docs/format.md: row 2 of a single tile lies in bytes 8 .. 11."""
    codes = np.zeros((16, 8 if dtype == "i4" else 4), np.int8)
    codes[2] = 1
    packed = pack(codes, dtype, "tile16")
    assert packed.nbytes == 64
    zero, one = (0x88, 0x99) if dtype == "i4" else (0, 1)
    assert list(packed[8:12]) == [one] * 4
    assert set(np.delete(packed, range(8, 12))) == {zero}
