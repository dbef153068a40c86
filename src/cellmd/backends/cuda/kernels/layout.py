"""How INT4 codes lie on the device.

Rows one after another, so that a row can be looked up and a block of rows is a slice. A row is cut into pieces of 128
columns, padded with the value 0, of 64 bytes: byte i holds column i in its low nibble and column 64 + i in its high
one, in two's complement. Why: a thread's 16-byte load holds 32 weights of one row, and a warp's load whole pieces; four
bytes masked are four int8 of 16 times the value, for the low nibbles after a shift, in the order in which tensor cores
take them: three instructions for eight weights; and neighbouring bytes are neighbouring columns, so no group of scales
(32 columns or a multiple) is straddled.
"""

from __future__ import annotations

import torch

PIECE = 128
"""Columns of a piece."""

_HALF = PIECE // 2


def n_pieces(n_columns: int) -> int:
    return -(-n_columns // PIECE)


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """int8 (M, K) in -8 .. 7 -> uint8 (M, ceil(K / 128) * 64)."""
    n_rows, n_columns = values.shape
    halves = torch.nn.functional.pad(values, (0, -n_columns % PIECE)).view(torch.uint8).reshape(n_rows, -1, 2, _HALF)
    return ((halves[:, :, 0] & 15) | (halves[:, :, 1] << 4)).reshape(n_rows, -1)


def unpack_int4(codes: torch.Tensor, n_columns: int) -> torch.Tensor:
    """The inverse: int8 (M, n_columns)."""
    n_rows, width = codes.shape
    pieces = codes.view(torch.int8).reshape(n_rows, width // _HALF, _HALF)
    values = torch.stack([(pieces << 4) >> 4, pieces >> 4], dim=2)
    return values.reshape(n_rows, 2 * width)[:, :n_columns]
