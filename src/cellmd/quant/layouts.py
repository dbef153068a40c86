"""How the codes of a quantised matrix, and its scales, lie in memory. `docs/format.md` is normative.

    row     rows one after another. int4: ceil(K / 2) bytes a row, the even column in the low nibble, each value + 8.
            int8: K bytes a row. Scales [N][G], G groups a row.
    tile16  16 rows at a time, 64 bytes for 4 bytes of each: bytes 4r .. 4r + 3 belong to row r. int4: 8 columns, byte j
            holding column j in its low nibble and column j + 4 in its high one, each value + 8. int8: 4 columns. N is
            padded to 16 and K to 8 or 4 with the value 0. Scales [N / 16][G][16], padded with 0.

Blocks of rows that start at a multiple of 16 lie one after another in both layouts, so a matrix can be written and read
a block of rows at a time. The four bytes of a row in a tile are handled here as one uint32.
"""

from __future__ import annotations

import numpy as np

from cellmd.quant.tensor import TILE_ROWS, Dtype, Layout

Rows = slice | np.ndarray
"""Which rows: a slice with a start and a stop, or integer indices (R,)."""

_COLUMNS_PER_WORD = {"i4": 8, "i8": 4}
_LOW_NIBBLES = np.uint32(0x0F0F0F0F)
_NIBBLE_ZERO = np.uint8(8)


def padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_rows(n_rows: int, layout: Layout) -> int:
    """Rows that are stored of a matrix with n_rows rows."""
    return padded(n_rows, TILE_ROWS) if layout == "tile16" else n_rows


def row_bytes(n_columns: int, dtype: Dtype, layout: Layout) -> int:
    """Bytes of the codes of one row."""
    if layout == "tile16":
        return padded(n_columns, _COLUMNS_PER_WORD[dtype]) // _COLUMNS_PER_WORD[dtype] * 4
    return (n_columns + 1) // 2 if dtype == "i4" else n_columns


def pack(codes: np.ndarray, dtype: Dtype, layout: Layout) -> np.ndarray:
    """int8 (N, K), int4 values in -8 .. 7 -> uint8 (bytes,)."""
    n_rows, n_columns = codes.shape
    if layout == "row":
        if dtype == "i8":
            return np.ascontiguousarray(codes).view(np.uint8).reshape(-1)
        pairs = _biased(codes, n_rows, padded(n_columns, 2)).view("<u2")
        joined: np.ndarray = pairs | (pairs >> np.uint16(4))
        return joined.astype(np.uint8).reshape(-1)
    tiles = padded(n_rows, TILE_ROWS) // TILE_ROWS
    words_per_row = row_bytes(n_columns, dtype, layout) // 4
    if dtype == "i4":
        eights = _biased(codes, tiles * TILE_ROWS, words_per_row * 8).view("<u8")
        words = (eights | (eights >> np.uint64(28))).astype("<u4")
    else:
        words = _padded_copy(codes, tiles * TILE_ROWS, words_per_row * 4).view("<u4")
    by_tile = words.reshape(tiles, TILE_ROWS, words_per_row).transpose(0, 2, 1)
    return np.ascontiguousarray(by_tile).reshape(-1).view(np.uint8)


def unpack(data: np.ndarray, shape: tuple[int, int], dtype: Dtype, layout: Layout, rows: Rows) -> np.ndarray:
    """Packed codes of a matrix of `shape` -> int8 (R, K): the asked rows alone are read."""
    n_rows, n_columns = shape
    width = row_bytes(n_columns, dtype, layout)
    if layout == "row":
        stored = data.reshape(n_rows, width)[rows]
        if dtype == "i8":
            return stored.view(np.int8)
        nibbles = np.empty((*stored.shape, 2), np.uint8)
        np.bitwise_and(stored, np.uint8(15), out=nibbles[..., 0])
        np.right_shift(stored, np.uint8(4), out=nibbles[..., 1])
        return _unbiased(nibbles.reshape(len(stored), 2 * width))[:, :n_columns]
    words = _take_rows(data.view("<u4").reshape(-1, width // 4, TILE_ROWS), rows)
    if dtype == "i8":
        return words.view(np.int8)[:, :n_columns]
    halves = np.empty((*words.shape, 2), "<u4")
    np.bitwise_and(words, _LOW_NIBBLES, out=halves[..., 0])
    np.bitwise_and(words >> np.uint32(4), _LOW_NIBBLES, out=halves[..., 1])
    return _unbiased(halves.reshape(len(words), width // 2).view(np.uint8))[:, :n_columns]


def pack_per_group(values: np.ndarray, layout: Layout) -> np.ndarray:
    """(N, G) of any type, such as stored scales -> flat, in file order."""
    if layout == "row":
        return np.ascontiguousarray(values).reshape(-1)
    n_rows, n_groups = values.shape
    full = _padded_copy(values, padded(n_rows, TILE_ROWS), n_groups)
    return np.ascontiguousarray(full.reshape(-1, TILE_ROWS, n_groups).transpose(0, 2, 1)).reshape(-1)


def unpack_per_group(flat: np.ndarray, shape: tuple[int, int], layout: Layout, rows: Rows) -> np.ndarray:
    """The inverse, for some rows: (R, G). `shape` is (N, G)."""
    n_rows, n_groups = shape
    if layout == "row":
        return flat.reshape(n_rows, n_groups)[rows]
    return _take_rows(flat.reshape(-1, n_groups, TILE_ROWS), rows)


def _take_rows(tiles: np.ndarray, rows: Rows) -> np.ndarray:
    """(T, X, 16) -> the rows (R, X), contiguous; tiles without one of them are not read."""
    if isinstance(rows, slice):
        first_tile = rows.start // TILE_ROWS
        some = tiles[first_tile : padded(rows.stop, TILE_ROWS) // TILE_ROWS]
        in_order = np.ascontiguousarray(some.transpose(0, 2, 1)).reshape(-1, tiles.shape[1])
        return in_order[rows.start - first_tile * TILE_ROWS : rows.stop - first_tile * TILE_ROWS]
    return np.ascontiguousarray(tiles[rows // TILE_ROWS, :, rows % TILE_ROWS])


def _padded_copy(values: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """values with zeros below and to the right; itself if nothing is to be added."""
    if values.shape == (n_rows, n_columns):
        return np.ascontiguousarray(values)
    full = np.zeros((n_rows, n_columns), values.dtype)
    full[: values.shape[0], : values.shape[1]] = values
    return full


def _biased(codes: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    return _padded_copy(codes, n_rows, n_columns).view(np.uint8) + _NIBBLE_ZERO


def _unbiased(nibbles: np.ndarray) -> np.ndarray:
    nibbles -= _NIBBLE_ZERO
    return nibbles.view(np.int8)
