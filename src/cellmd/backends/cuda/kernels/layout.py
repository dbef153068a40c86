"""How INT4 codes lie on the device.

Rows one after another, so that a row can be looked up and a block of rows is a slice. A row is cut into pieces of 128
columns, padded with the value 0, of 64 bytes: 32 little-endian 16-bit words, word i holding the columns i, 32 + i,
64 + i and 96 + i in its nibbles from the lowest up, each value + 8. Why: a thread's 16-byte load holds 32 weights of
one row and a warp's load whole 64-byte pieces; two words shifted by 4 j and masked are two neighbouring bfloat16 of
`plane` j with three instructions, in the order in which tensor cores take them; a plane is 32 neighbouring columns, so
its inputs are read in one go and it never straddles a group of scales (groups are 32 or a multiple).
"""

from __future__ import annotations

import torch

PIECE = 128
"""Columns of a piece."""

PLANES = 4
PLANE = PIECE // PLANES
"""Columns of a plane: words of a piece."""


def n_pieces(n_columns: int) -> int:
    return -(-n_columns // PIECE)


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """int8 (M, K) in -8 .. 7 -> uint8 (M, ceil(K / 128) * 64)."""
    n_rows, n_columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -n_columns % PIECE)).view(torch.uint8) + 8
    planes = padded.reshape(n_rows, -1, PLANES, PLANE)
    low = planes[:, :, 0] | (planes[:, :, 1] << 4)
    high = planes[:, :, 2] | (planes[:, :, 3] << 4)
    return torch.stack([low, high], dim=3).reshape(n_rows, -1)


def unpack_int4(codes: torch.Tensor, n_columns: int) -> torch.Tensor:
    """The inverse: int8 (M, n_columns)."""
    n_rows, width = codes.shape
    words = codes.reshape(n_rows, 2 * width // PIECE, PLANE, 2)
    low, high = words[..., 0], words[..., 1]
    planes = torch.stack([low & 15, low >> 4, high & 15, high >> 4], dim=2).view(torch.int8) - 8
    return planes.reshape(n_rows, 2 * width)[:, :n_columns]
