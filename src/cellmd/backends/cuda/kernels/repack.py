"""INT4 codes from the file's `tile16` layout into that of the device (`layout`), in one pass and without memory for
what lies between."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import launch, let_next_start, wait_for_inputs
from cellmd.backends.cuda.kernels.layout import n_pieces

_ROWS = 32


@triton.jit
def _nibble(stored, row, column, known, blocks, K):
    """The values of columns of rows in two's complement, 0 beyond the last column: int32. Of 16 rows and 8 columns
    there are 64 bytes, 4 of a row, byte j with column j in its low nibble and j + 4 in its high one, each value + 8."""
    inside = known & (column < K)[None, :]
    at = ((row // 16)[:, None] * blocks + (column // 8)[None, :]) * 64
    at += (row % 16)[:, None] * 4 + (column % 4)[None, :]
    byte = tl.load(stored + at, mask=inside, other=0).to(tl.int32)
    return tl.where(inside, ((byte >> (column % 8 // 4 * 4)[None, :]) & 15) ^ 8, 0)


@triton.jit
def _repack(stored, out, M, K, OVERLAPS: tl.constexpr, ROWS: tl.constexpr):
    let_next_start(OVERLAPS)
    pieces, blocks = tl.cdiv(K, 128), tl.cdiv(K, 8)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, 64)
    column = tl.program_id(1) * 128 + i
    known = (row < M)[:, None]
    wait_for_inputs(OVERLAPS)
    low = _nibble(stored, row, column, known, blocks, K)
    high = _nibble(stored, row, column + 64, known, blocks, K)
    at = row[:, None] * (pieces * 64) + tl.program_id(1) * 64 + i[None, :]
    tl.store(out + at, (low | (high << 4)).to(tl.uint8), mask=known)


def repack_int4(stored: torch.Tensor, out: torch.Tensor, n_columns: int) -> None:
    """stored: uint8, blocks of 16 rows as they lie in the file. out: uint8 (M, ceil(n_columns / 128) * 64)."""
    n_rows = len(out)
    grid = triton.cdiv(n_rows, _ROWS), n_pieces(n_columns)
    launch(_repack, grid, out.device, 4, stored, out, n_rows, n_columns, ROWS=_ROWS)
