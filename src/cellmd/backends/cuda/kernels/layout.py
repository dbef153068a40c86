"""How INT4 codes lie on the device: rows one after another, each in pieces of 32 columns padded with the value 0, 16
bytes a piece: byte j holds column j in its low nibble and column j + 16 in its high one, each value + 8."""

from __future__ import annotations

import torch

_PIECE = 32


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """int8 (M, K) in -8 .. 7 -> uint8 (M, ceil(K / 32) * 16)."""
    n_rows, n_columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -n_columns % _PIECE)).view(torch.uint8) + 8
    halves = padded.reshape(n_rows, -1, 2, _PIECE // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(n_rows, -1)


def unpack_int4(codes: torch.Tensor, n_columns: int) -> torch.Tensor:
    """The inverse: int8 (M, n_columns)."""
    n_rows, width = codes.shape
    pieces = codes.reshape(n_rows, width // 16, 1, 16)
    values = torch.cat([pieces & 15, pieces >> 4], dim=2).view(torch.int8) - 8
    return values.reshape(n_rows, 2 * width)[:, :n_columns]
