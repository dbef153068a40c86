"""Products with few rows: the weights are read once, from a piece of a row straight into tensor cores.

A program makes BLOCK outputs of all rows of x. Its warps share the columns among them: the product is a batch of
products, one for each piece of 128 columns, each scaled by the scales of its own groups and then summed over the
batch, in an order that knows nothing of how many rows there are. Weights of one launch are asked for before the inputs
are waited for.

With one row, what comes before the product is done in it, over and over in every program, since a launch costs more:
the closing of the residual block before, x = (x + norm(y) * weight) * scale, and the norm of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import (
    ceil_power_of_2,
    gelu,
    int4_plane,
    launch,
    let_next_start,
    operand,
    rounded,
    tanh,
    wait_for_inputs,
)
from cellmd.backends.cuda.kernels.layout import PIECE, n_pieces
from cellmd.backends.cuda.weights import DeviceMatrix

MOST_ROWS = 64
"""Rows of x; with more, `matmul` is the faster way."""

MOST_MATRICES = 3


@dataclass(frozen=True)
class Residual:
    """The closing of a residual block: x becomes (x + rms_norm(y, weight)) * scale. All float32, y (1, K).

    `out` (1, K) takes the new x: not x itself, which programs of the same launch still read.
    """

    y: torch.Tensor
    weight: torch.Tensor
    out: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Tile:
    """outputs a program, pieces at a time, warps, stages: loads under way in a loop over pieces."""

    outputs: int
    pieces: int
    warps: int
    stages: int = 3


_PLAIN, _SOFTCAP, _GEGLU, _GEGLU_OTHER = (tl.constexpr(i) for i in range(4))


@triton.jit
def _weights(codes, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr):
    """Of the rows, in each piece: the words of all planes (int4), or the numbers of one. (CH, BLOCK, 32)."""
    i = tl.arange(0, 32)
    pieces: tl.constexpr = (K + 127) // 128
    inside = (rows < M)[None, :, None] & (piece < pieces)[:, None, None]
    if BITS == 4:
        at = rows[None, :, None] * (pieces * 32) + piece[:, None, None] * 32 + i[None, None, :]
        return tl.load(codes + at, mask=inside, other=0)
    else:
        column = piece[:, None, None] * 128 + PLANE * 32 + i[None, None, :]
        if K % 128 != 0:
            inside = inside & (column < K)
        return tl.load(codes + rows[None, :, None] * K + column, mask=inside, other=0)


@triton.jit
def _plane_values(words, codes, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr):
    if BITS == 4:
        return int4_plane(words, PLANE)
    else:
        return operand(_weights(codes, rows, M, piece, K, BITS, PLANE))


@triton.jit
def _scaled(part, scales, rows, M, piece, K: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr):
    """The part (CH, BLOCK, N) of a product that ends with a plane, by the scales of its group."""
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    group = tl.minimum((piece * 128 + PLANE * 32) // GROUP, groups - 1)  # a plane may lie in the padding
    inside = (rows < M)[None, :] & (piece * 128 < K)[:, None]
    at = rows[None, :] * groups + group[:, None]
    return part * tl.load(scales + at, mask=inside, other=0).to(tl.float32)[:, :, None]


@triton.jit
def _prefetch(codes, rows, M, K: tl.constexpr, BITS: tl.constexpr):
    """Ask for the rows' codes to come into the L2 cache, a line of 128 bytes at a time."""
    width: tl.constexpr = (K + 127) // 128 * 64 if BITS == 4 else K * BITS // 8
    lines: tl.constexpr = (width + 127) // 128
    block: tl.constexpr = triton.next_power_of_2(lines)
    line = tl.arange(0, block)[None, :]
    inside = (rows < M)[:, None] & (line < lines)
    at = codes.to(tl.pointer_type(tl.uint8)) + tl.where(inside, rows[:, None] * width + line * 128, 0)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _linear(
    x,
    norm_weight,
    y,
    y_weight,
    x_out,
    codes_0,
    scales_0,
    out_0,
    m_0,
    codes_1,
    scales_1,
    out_1,
    m_1,
    codes_2,
    scales_2,
    out_2,
    m_2,
    other,
    other_stride,
    N,
    eps,
    scale,
    cap,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NORM: tl.constexpr,
    ENDING: tl.constexpr,
    ONE_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    CH: tl.constexpr,
    CHUNKS: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_next_start(OVERLAPS)
    index = tl.program_id(0)
    codes, scales, out, M = codes_0, scales_0, out_0, m_0
    block = index
    if ENDING != _GEGLU:
        first_1 = tl.cdiv(m_0, BLOCK)
        first_2 = first_1 + tl.cdiv(m_1, BLOCK)
        if index >= first_2:
            codes, scales, out, M = codes_2, scales_2, out_2, m_2
            block = index - first_2
        elif index >= first_1:
            codes, scales, out, M = codes_1, scales_1, out_1, m_1
            block = index - first_1
    rows = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BN)
    i = tl.arange(0, 32)
    acc = tl.zeros((CH, BLOCK, BN), tl.float32)
    acc_up = tl.zeros((CH, BLOCK, BN), tl.float32)
    factor = 1.0

    if CHUNKS == 1:
        piece = tl.arange(0, CH)
        words = codes
        words_up = codes
        if BITS == 4:
            words = _weights(codes, rows, M, piece, K, BITS, 0)
            if ENDING == _GEGLU:
                words_up = _weights(codes_1, rows, M, piece, K, BITS, 0)
        elif OVERLAPS:
            _prefetch(codes, rows, M, K, BITS)
        wait_for_inputs(OVERLAPS)
        y_factor = 0.0
        if RESIDUAL:
            squares = tl.zeros((CH, 32), tl.float32)
            for j in tl.static_range(4):
                column = piece[:, None] * 128 + j * 32 + i[None, :]
                y_j = tl.load(y + column, mask=column < K, other=0.0).to(tl.float32)
                squares += y_j * y_j
            y_factor = tl.rsqrt(tl.sum(squares) / K + eps)
        squares = tl.zeros((CH, 32), tl.float32)
        part = tl.zeros((CH, BLOCK, BN), tl.float32)
        part_up = tl.zeros((CH, BLOCK, BN), tl.float32)
        for j in tl.static_range(4):
            column = piece[:, None] * 128 + j * 32 + i[None, :]
            if ONE_ROW:
                x_j = tl.load(x + column, mask=column < K, other=0.0).to(tl.float32)
                if RESIDUAL:
                    y_j = tl.load(y + column, mask=column < K, other=0.0).to(tl.float32)
                    y_j *= tl.load(y_weight + column, mask=column < K, other=0.0)
                    x_j = (x_j + y_j * y_factor) * scale
                    tl.store(x_out + column, x_j, mask=(column < K) & (index == 0))
                if NORM:
                    squares += x_j * x_j
                    x_j *= tl.load(norm_weight + column, mask=column < K, other=0.0)
                taken = tl.broadcast_to(operand(x_j)[:, :, None], (CH, 32, BN))
            else:
                inside = (column < K)[:, :, None] & (n < N)[None, None, :]
                taken = operand(tl.load(x + n[None, None, :] * K + column[:, :, None], mask=inside, other=0.0))
            part = tl.dot(_plane_values(words, codes, rows, M, piece, K, BITS, j), taken, part)
            if ENDING == _GEGLU:
                part_up = tl.dot(_plane_values(words_up, codes_1, rows, M, piece, K, BITS, j), taken, part_up)
            if j == 3 or (j + 1) * 32 % GROUP == 0:
                if BITS == 16:
                    acc += part
                    acc_up += part_up
                else:
                    acc += _scaled(part, scales, rows, M, piece, K, GROUP, j)
                    if ENDING == _GEGLU:
                        acc_up += _scaled(part_up, scales_1, rows, M, piece, K, GROUP, j)
                part = tl.zeros((CH, BLOCK, BN), tl.float32)
                part_up = tl.zeros((CH, BLOCK, BN), tl.float32)
        if NORM:
            factor = tl.rsqrt(tl.sum(squares) / K + eps)
    else:
        if OVERLAPS:
            _prefetch(codes, rows, M, K, BITS)
            if ENDING == _GEGLU:
                _prefetch(codes_1, rows, M, K, BITS)
        wait_for_inputs(OVERLAPS)
        for chunk in tl.range(0, CHUNKS, num_stages=STAGES):
            piece = chunk * CH + tl.arange(0, CH)
            words = codes
            words_up = codes
            if BITS == 4:
                words = _weights(codes, rows, M, piece, K, BITS, 0)
                if ENDING == _GEGLU:
                    words_up = _weights(codes_1, rows, M, piece, K, BITS, 0)
            part = tl.zeros((CH, BLOCK, BN), tl.float32)
            part_up = tl.zeros((CH, BLOCK, BN), tl.float32)
            for j in tl.static_range(4):
                column = piece[:, None] * 128 + j * 32 + i[None, :]
                inside = (column < K)[:, :, None] & (n < N)[None, None, :]
                taken = operand(tl.load(x + n[None, None, :] * K + column[:, :, None], mask=inside, other=0.0))
                part = tl.dot(_plane_values(words, codes, rows, M, piece, K, BITS, j), taken, part)
                if ENDING == _GEGLU:
                    part_up = tl.dot(_plane_values(words_up, codes_1, rows, M, piece, K, BITS, j), taken, part_up)
                if j == 3 or (j + 1) * 32 % GROUP == 0:
                    if BITS == 16:
                        acc += part
                        acc_up += part_up
                    else:
                        acc += _scaled(part, scales, rows, M, piece, K, GROUP, j)
                        if ENDING == _GEGLU:
                            acc_up += _scaled(part_up, scales_1, rows, M, piece, K, GROUP, j)
                    part = tl.zeros((CH, BLOCK, BN), tl.float32)
                    part_up = tl.zeros((CH, BLOCK, BN), tl.float32)

    result = tl.sum(acc, axis=0) * factor
    inside = (rows < M)[:, None] & (n < N)[None, :]
    if ENDING == _SOFTCAP:
        result = cap * tanh(result / cap)
    elif ENDING == _GEGLU:
        result = gelu(result) * (tl.sum(acc_up, axis=0) * factor)
    elif ENDING == _GEGLU_OTHER:
        result = gelu(result) * tl.load(other + n[None, :] * other_stride + rows[:, None], mask=inside, other=0.0)
    tl.store(out + n[None, :] * M + rows[:, None], rounded(result, out.dtype.element_ty), mask=inside)


def linear(
    x: torch.Tensor,
    matrices: Sequence[DeviceMatrix],
    *,
    norm_weight: torch.Tensor | None = None,
    residual: Residual | None = None,
    eps: float = 0.0,
    cap: float = 0.0,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, ...]:
    """x (N, K) float32 or bfloat16, N <= MOST_ROWS, times up to three matrices (M_i, K) of equal coding -> (N, M_i) of
    `dtype` each, in one launch. cap > 0: cap * tanh(y / cap) of each output y.

    norm_weight (K,): the product is that of rms_norm(x, norm_weight, eps). residual: of x as it is after that closing,
    with the same eps. Both with one row alone, and K up to what one piece a step holds (`fits_one_step`).
    """
    ending = _SOFTCAP if cap else _PLAIN
    outs = tuple(x.new_empty((x.shape[0], matrix.shape[0]), dtype=dtype) for matrix in matrices)
    _launch(x, matrices, outs, ending, norm_weight, residual, eps, cap=cap, tile=tile)
    return outs


def geglu(
    x: torch.Tensor,
    gate: DeviceMatrix,
    up: DeviceMatrix | torch.Tensor,
    *,
    norm_weight: torch.Tensor | None = None,
    residual: Residual | None = None,
    eps: float = 0.0,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> torch.Tensor:
    """gelu(x W_gate^T) * (x W_up^T), or * up if that is a float32 tensor (N, M) whose rows may lie apart. (N, M) of
    `dtype`. The rest as for `linear`."""
    out = x.new_empty((x.shape[0], gate.shape[0]), dtype=dtype)
    if isinstance(up, DeviceMatrix):
        _launch(x, (gate, up), (out, out), _GEGLU, norm_weight, residual, eps, tile=tile)
    else:
        _launch(x, (gate,), (out,), _GEGLU_OTHER, norm_weight, residual, eps, other=up, tile=tile)
    return out


def alike(matrices: Sequence[DeviceMatrix]) -> bool:
    """Whether one launch can take these matrices: coded alike, without clip and bias."""
    first = matrices[0]
    return len(matrices) <= MOST_MATRICES and all(
        matrix.clip is None
        and matrix.bias is None
        and matrix.codes.dtype != torch.float32
        and (matrix.shape[1], matrix.bits, matrix.group_size) == (first.shape[1], first.bits, first.group_size)
        and _scale_type(matrix) == _scale_type(first)
        for matrix in matrices
    )


def fits_one_step(n_columns: int) -> bool:
    """Whether rows of so many columns can be normed in the product itself."""
    return n_pieces(n_columns) <= _MOST_PIECES


_MOST_PIECES = 32


def _scale_type(matrix: DeviceMatrix) -> torch.dtype | None:
    return None if matrix.scales is None else matrix.scales.dtype


def _launch(
    x: torch.Tensor,
    matrices: Sequence[DeviceMatrix],
    outs: Sequence[torch.Tensor],
    ending: tl.constexpr,
    norm_weight: torch.Tensor | None,
    residual: Residual | None,
    eps: float,
    *,
    cap: float = 0.0,
    other: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> None:
    n_rows, n_columns = x.shape
    first = matrices[0]
    fused = norm_weight is not None or residual is not None
    one_row = n_rows == 1
    tile = tile or _tile(n_rows, first, double=ending is _GEGLU)
    chunks = triton.cdiv(n_pieces(n_columns), tile.pieces)
    if fused and chunks > 1:
        tile = replace(tile, pieces=ceil_power_of_2(n_pieces(n_columns)))
        chunks = 1
    full = [*matrices, *[None] * (MOST_MATRICES - len(matrices))]
    arguments: list[object] = []
    for k, matrix in enumerate(full):
        known = matrix or first
        codes = known.codes.view(torch.int16) if known.bits == 4 else known.codes
        scales = codes if known.scales is None else known.scales
        out = outs[k] if k < len(outs) else outs[0]
        arguments += [codes, scales, out, 0 if matrix is None else matrix.shape[0]]
    n_programs = sum(triton.cdiv(matrix.shape[0], tile.outputs) for matrix in matrices[: 1 if ending is _GEGLU else 3])
    launch(
        _linear,
        (n_programs,),
        x.device,
        tile.warps,
        x,
        x if norm_weight is None else norm_weight,
        x if residual is None else residual.y,
        x if residual is None else residual.weight,
        x if residual is None else residual.out,
        *arguments,
        x if other is None else other,
        0 if other is None else other.stride(0),
        n_rows,
        eps,
        1.0 if residual is None else residual.scale,
        cap,
        K=n_columns,
        BITS=first.bits,
        GROUP=first.group_size or PIECE,
        RESIDUAL=residual is not None,
        NORM=norm_weight is not None,
        ENDING=ending,
        ONE_ROW=one_row,
        BLOCK=tile.outputs,
        CH=tile.pieces,
        CHUNKS=chunks,
        BN=max(8, ceil_power_of_2(n_rows)),
        STAGES=tile.stages,
    )


def _tile(n_rows: int, matrix: DeviceMatrix, *, double: bool) -> Tile:
    """What was fastest on an H100 at the shapes of Gemma 4 E2B (bench/cuda)."""
    pieces = ceil_power_of_2(n_pieces(matrix.shape[1]))
    if n_rows > 8:
        return Tile(outputs=32 if matrix.shape[0] >= 4096 else 16, pieces=min(pieces, 4), warps=min(pieces, 4))
    warps = min(pieces, 4 if pieces <= 16 else 8)
    if n_rows == 1 and matrix.shape[0] >= 1 << 16 and pieces <= 16:
        return Tile(outputs=64, pieces=pieces, warps=min(pieces, 8))
    return Tile(outputs=16, pieces=min(pieces, 16), warps=warps)
