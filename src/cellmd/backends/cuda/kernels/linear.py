"""Products with few rows: the weights are read once, as they lie, straight into tensor cores, as integers.

The inputs become integers too, of 16 bits: each piece of 128 columns of a row is divided by its largest size / 32512
and rounded, and a number is 256 times its high byte plus its low one. So a product of int8 with both bytes, as two
columns, is exact until scales come in, once a group. All of a piece's inputs are rounded by less than bfloat16 rounds
its largest. A program makes BLOCK outputs of all rows of x. Its warps share the columns among them: the product is a
batch of products, one for each piece, summed over the batch in an order that knows nothing of the other rows' values.

Weights are asked for before the inputs are waited for. With one row, what comes before the product is done in it, over
and over in every program, since a launch costs more: the closing of the residual block before, x = (x + norm(y) *
weight) * scale, the norm of x, and its rounding. With more rows a launch of its own rounds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels import common
from cellmd.backends.cuda.kernels.common import (
    ceil_power_of_2,
    gelu,
    launch,
    let_next_start,
    nibbles,
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
    """outputs a program and its warps; with more than one row also pieces at a time, and stages: loads under way."""

    outputs: int
    pieces: int
    warps: int
    stages: int = 3


_PLAIN, _SOFTCAP, _GEGLU, _GEGLU_OTHER = (tl.constexpr(i) for i in range(4))
_LEAST = tl.constexpr(1e-30)
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded, and lies in its low bits
_ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def _stored(codes, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Of the rows, in each piece: bytes PART * WIDTH + i (int4) or columns (int8). int8 (CH, BLOCK, WIDTH)."""
    i = tl.arange(0, WIDTH)
    pieces: tl.constexpr = (K + 127) // 128
    inside = (rows < M)[None, :, None] & (piece < pieces)[:, None, None]
    if BITS == 4:
        column = piece[:, None, None] * 64 + PART * WIDTH + i[None, None, :]
        return tl.load(codes + rows[None, :, None] * (pieces * 64) + column, mask=inside, other=0)
    else:
        column = piece[:, None, None] * 128 + PART * WIDTH + i[None, None, :]
        if K % 128 != 0:
            inside = inside & (column < K)
        return tl.load(codes + rows[None, :, None] * K + column, mask=inside, other=0)


@triton.jit
def _values(
    first, second, codes, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, J: tl.constexpr, WIDTH: tl.constexpr
):
    """Columns J * WIDTH + i of the pieces, of int4 (16-fold) from the bytes loaded before."""
    if BITS == 4:
        if J * WIDTH % 64 == 0:
            return nibbles(first, J * WIDTH >= 64)
        else:
            return nibbles(second, J * WIDTH >= 64)
    else:
        return _stored(codes, rows, M, piece, K, BITS, J, WIDTH)


@triton.jit
def _scales(
    scales, rows, M, piece, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, J: tl.constexpr, W: tl.constexpr
):
    """The scales of the group in which columns J * W of the pieces lie, float32 (CH, BLOCK)."""
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    group = tl.minimum((piece * 128 + J * W) // GROUP, groups - 1)  # the last columns may lie in the padding
    inside = (rows < M)[None, :] & (piece * 128 < K)[:, None]
    found = tl.load(scales + rows[None, :] * groups + group[:, None], mask=inside, other=0).to(tl.float32)
    return found * 0.0625 if BITS == 4 else found


@triton.jit
def _steps_in(largest):
    """One over the step of a piece: its largest size is 32512 steps, the most whose high byte is 127."""
    return 32512.0 / tl.maximum(largest, _LEAST)


@triton.jit
def _bytes(x, inverse):
    """x / step, rounded, as high and low bytes."""
    q = (x * inverse + _ROUNDER).to(tl.int32, bitcast=True) - _ROUNDER_BITS
    return ((q + 128) >> 8).to(tl.int8), q.to(tl.int8)


@triton.jit
def _joined(part):
    """Products (..., 2) with high and low bytes -> float32 (...)."""
    high, low = tl.split(part)
    return high.to(tl.float32) * 256 + low.to(tl.float32)


@triton.jit
def _closed(x, y, y_weight, column, y_factor, scale, K: tl.constexpr, RESIDUAL: tl.constexpr):
    """Columns of the one row, as they are after the residual block before."""
    inside = column < K
    x_j = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        y_j = tl.load(y + column, mask=inside, other=0.0).to(tl.float32)
        x_j = (x_j + y_j * y_factor * tl.load(y_weight + column, mask=inside, other=0.0)) * scale
    return x_j


@triton.jit
def _one_row(
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
    BLOCK: tl.constexpr,
    CH: tl.constexpr,
    W: tl.constexpr,
):
    let_next_start(OVERLAPS)
    index = tl.program_id(0)
    codes, scales, out, M, block = codes_0, scales_0, out_0, m_0, index
    if ENDING != _GEGLU:
        first_1 = tl.cdiv(m_0, BLOCK)
        first_2 = first_1 + tl.cdiv(m_1, BLOCK)
        if index >= first_2:
            codes, scales, out, M, block = codes_2, scales_2, out_2, m_2, index - first_2
        elif index >= first_1:
            codes, scales, out, M, block = codes_1, scales_1, out_1, m_1, index - first_1
    rows = block * BLOCK + tl.arange(0, BLOCK)
    piece = tl.arange(0, CH)
    i = tl.arange(0, W)
    first, second, up_first, up_second = codes, codes, codes, codes
    if BITS == 4:
        first = _stored(codes, rows, M, piece, K, BITS, 0, W)
        second = _stored(codes, rows, M, piece, K, BITS, 1, W) if W == 32 else first
        if ENDING == _GEGLU:
            up_first = _stored(codes_1, rows, M, piece, K, BITS, 0, W)
            up_second = _stored(codes_1, rows, M, piece, K, BITS, 1, W) if W == 32 else up_first
    wait_for_inputs(OVERLAPS)

    y_factor = 0.0
    if RESIDUAL:
        squares = tl.zeros((CH, W), tl.float32)
        for j in tl.static_range(128 // W):
            column = piece[:, None] * 128 + j * W + i[None, :]
            y_j = tl.load(y + column, mask=column < K, other=0.0).to(tl.float32)
            squares += y_j * y_j
        y_factor = tl.rsqrt(tl.sum(squares) / K + eps)
    squares = tl.zeros((CH, W), tl.float32)
    sizes = tl.zeros((CH, W), tl.float32)
    for j in tl.static_range(128 // W):
        column = piece[:, None] * 128 + j * W + i[None, :]
        x_j = _closed(x, y, y_weight, column, y_factor, scale, K, RESIDUAL)
        if RESIDUAL:  # noqa: SIM102 - one is known when it is compiled
            if index == 0:  # one program for all
                tl.store(x_out + column, x_j, mask=column < K)
        if NORM:
            squares += x_j * x_j
            x_j *= tl.load(norm_weight + column, mask=column < K, other=0.0)
        sizes = tl.maximum(sizes, tl.abs(x_j))
    largest = tl.max(sizes, axis=1)
    inverse = _steps_in(largest)[:, None]
    factor = tl.rsqrt(tl.sum(squares) / K + eps) if NORM else 1.0

    acc = tl.zeros((CH, BLOCK), tl.float32)
    acc_up = tl.zeros((CH, BLOCK), tl.float32)
    part = tl.zeros((CH, BLOCK, 2), tl.int32)
    part_up = tl.zeros((CH, BLOCK, 2), tl.int32)
    for j in tl.static_range(128 // W):
        column = piece[:, None] * 128 + j * W + i[None, :]
        x_j = _closed(x, y, y_weight, column, y_factor, scale, K, RESIDUAL)
        if NORM:
            x_j *= tl.load(norm_weight + column, mask=column < K, other=0.0)
        high, low = _bytes(x_j, inverse)
        # columns last until the end, so that tensor cores find four of them in a word
        taken = tl.trans(tl.where((tl.arange(0, 2) == 0)[None, :, None], high[:, None, :], low[:, None, :]), 0, 2, 1)
        part = tl.dot(_values(first, second, codes, rows, M, piece, K, BITS, j, W), taken, part, out_dtype=tl.int32)
        if ENDING == _GEGLU:
            values = _values(up_first, up_second, codes_1, rows, M, piece, K, BITS, j, W)
            part_up = tl.dot(values, taken, part_up, out_dtype=tl.int32)
        if (j + 1) * W == 128 or (j + 1) * W % GROUP == 0:
            acc += _joined(part) * _scales(scales, rows, M, piece, K, BITS, GROUP, j, W)
            part = tl.zeros((CH, BLOCK, 2), tl.int32)
            if ENDING == _GEGLU:
                acc_up += _joined(part_up) * _scales(scales_1, rows, M, piece, K, BITS, GROUP, j, W)
                part_up = tl.zeros((CH, BLOCK, 2), tl.int32)
    step = (largest / 32512 * factor)[:, None]
    result = tl.sum(acc * step, axis=0)
    if ENDING == _SOFTCAP:
        result = cap * tanh(result / cap)
    elif ENDING == _GEGLU:
        result = gelu(result) * tl.sum(acc_up * step, axis=0)
    elif ENDING == _GEGLU_OTHER:
        result = gelu(result) * tl.load(other + rows, mask=rows < M, other=0.0)
    tl.store(out + rows, rounded(result, out.dtype.element_ty), mask=rows < M)


@triton.jit
def _split(x, bytes_, steps, OVERLAPS: tl.constexpr, K: tl.constexpr, CH: tl.constexpr):
    """Rows of x as high and low bytes, (N, 2, pieces * 128), and the steps of their pieces (N, pieces)."""
    let_next_start(OVERLAPS)
    row = tl.program_id(0)
    piece = tl.program_id(1) * CH + tl.arange(0, CH)
    pieces: tl.constexpr = (K + 127) // 128
    column = piece[:, None] * 128 + tl.arange(0, 128)[None, :]
    wait_for_inputs(OVERLAPS)
    values = tl.load(x + row * K + column, mask=column < K, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), axis=1)
    high, low = _bytes(values, _steps_in(largest)[:, None])
    at, inside = row * (2 * pieces * 128) + column, column < pieces * 128
    tl.store(bytes_ + at, high, mask=inside)
    tl.store(bytes_ + at + pieces * 128, low, mask=inside)
    tl.store(steps + row * pieces + piece, largest / 32512, mask=piece < pieces)


@triton.jit
def _no_products(CH: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr):
    if CH == 1:
        return tl.zeros((BLOCK, 2 * BN), tl.int32)
    else:
        return tl.zeros((CH, BLOCK, 2 * BN), tl.int32)


@triton.jit
def _plus_products(part, values, taken):
    """values (CH, BLOCK, W) times taken (CH, W, 2 N), added to part. A batch of one is no batch: warps share the rows
    of a plain product, but would all do the same one of a batch."""
    if values.shape[0] == 1:
        flat = tl.reshape(values, (values.shape[1], values.shape[2]))
        return tl.dot(flat, tl.reshape(taken, (taken.shape[1], taken.shape[2])), part, out_dtype=tl.int32)
    else:
        return tl.dot(values, taken, part, out_dtype=tl.int32)


@triton.jit
def _few_rows(
    bytes_,
    steps,
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
    cap,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ENDING: tl.constexpr,
    BLOCK: tl.constexpr,
    CH: tl.constexpr,
    W: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_next_start(OVERLAPS)
    index = tl.program_id(0)
    pieces: tl.constexpr = (K + 127) // 128
    codes, scales, out, M, block = codes_0, scales_0, out_0, m_0, index
    if ENDING != _GEGLU:
        first_1 = tl.cdiv(m_0, BLOCK)
        first_2 = first_1 + tl.cdiv(m_1, BLOCK)
        if index >= first_2:
            codes, scales, out, M, block = codes_2, scales_2, out_2, m_2, index - first_2
        elif index >= first_1:
            codes, scales, out, M, block = codes_1, scales_1, out_1, m_1, index - first_1
    rows = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BN)
    line = tl.arange(0, 2 * BN)
    i = tl.arange(0, W)
    acc = tl.zeros((CH, BLOCK, BN), tl.float32)
    acc_up = tl.zeros((CH, BLOCK, BN), tl.float32)
    wait_for_inputs(OVERLAPS)
    for chunk in tl.range(0, tl.cdiv(pieces, CH), num_stages=STAGES):
        piece = chunk * CH + tl.arange(0, CH)
        first, second, up_first, up_second = codes, codes, codes, codes
        if BITS == 4:
            first = _stored(codes, rows, M, piece, K, BITS, 0, W)
            second = _stored(codes, rows, M, piece, K, BITS, 1, W) if W == 32 else first
            if ENDING == _GEGLU:
                up_first = _stored(codes_1, rows, M, piece, K, BITS, 0, W)
                up_second = _stored(codes_1, rows, M, piece, K, BITS, 1, W) if W == 32 else up_first
        inside = (piece < pieces)[:, None] & (n < N)[None, :]
        step = tl.load(steps + n[None, :] * pieces + piece[:, None], mask=inside, other=0.0)[:, None, :]
        part = _no_products(CH, BLOCK, BN)
        part_up = _no_products(CH, BLOCK, BN)
        for j in tl.static_range(128 // W):
            column = piece[:, None] * 128 + j * W + i[None, :]
            at = line[None, None, :] * (pieces * 128) + column[:, :, None]
            there = (piece < pieces)[:, None, None] & (line < 2 * N)[None, None, :]
            taken = tl.load(bytes_ + at, mask=there, other=0)
            part = _plus_products(part, _values(first, second, codes, rows, M, piece, K, BITS, j, W), taken)
            if ENDING == _GEGLU:
                values = _values(up_first, up_second, codes_1, rows, M, piece, K, BITS, j, W)
                part_up = _plus_products(part_up, values, taken)
            if (j + 1) * W == 128 or (j + 1) * W % GROUP == 0:
                of_rows = _scales(scales, rows, M, piece, K, BITS, GROUP, j, W)[:, :, None]
                acc += _joined(tl.reshape(part, (CH, BLOCK, BN, 2))) * of_rows * step
                part = _no_products(CH, BLOCK, BN)
                if ENDING == _GEGLU:
                    of_rows = _scales(scales_1, rows, M, piece, K, BITS, GROUP, j, W)[:, :, None]
                    acc_up += _joined(tl.reshape(part_up, (CH, BLOCK, BN, 2))) * of_rows * step
                    part_up = _no_products(CH, BLOCK, BN)
    result = tl.sum(acc, axis=0)
    inside = (rows < M)[:, None] & (n < N)[None, :]
    if ENDING == _SOFTCAP:
        result = cap * tanh(result / cap)
    elif ENDING == _GEGLU:
        result = gelu(result) * tl.sum(acc_up, axis=0)
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
    """Whether one launch can take these matrices: INT4 or INT8, coded alike, without clip and bias."""
    first = matrices[0]
    return len(matrices) <= MOST_MATRICES and all(
        matrix.clip is None
        and matrix.bias is None
        and matrix.scales is not None
        and first.scales is not None
        and matrix.scales.dtype == first.scales.dtype
        and (matrix.shape[1], matrix.bits, matrix.group_size) == (first.shape[1], first.bits, first.group_size)
        for matrix in matrices
    )


def fits_one_step(n_columns: int) -> bool:
    """Whether a row of so many columns can be normed in the product itself."""
    return n_pieces(n_columns) <= _MOST_PIECES


_MOST_PIECES = 64


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
    tile = tile or _tile(n_rows, first, double=ending is _GEGLU)
    pieces, whole = n_pieces(n_columns), ceil_power_of_2(n_pieces(n_columns))
    arguments: list[object] = []
    for k in range(MOST_MATRICES):
        matrix, out = (matrices[k], outs[k]) if k < len(matrices) else (first, outs[0])
        arguments += [matrix.codes.view(torch.int8), matrix.scales, out, matrix.shape[0] if k < len(matrices) else 0]
    grid = (sum(triton.cdiv(matrix.shape[0], tile.outputs) for matrix in matrices[: 1 if ending is _GEGLU else None]),)
    constants = {
        "K": n_columns,
        "BITS": first.bits,
        "GROUP": first.group_size,
        "ENDING": ending,
        "BLOCK": tile.outputs,
        "W": 32 if first.group_size % 64 and first.group_size < n_columns else 64,
    }
    other = x if other is None else other
    fused = norm_weight is not None or residual is not None
    if n_rows == 1 and (fused or tile.pieces >= whole):
        before = [x, x, x] if residual is None else [residual.y, residual.weight, residual.out]
        launch(
            _one_row,
            grid,
            x.device,
            tile.warps,
            *(x, x if norm_weight is None else norm_weight, *before, *arguments, other),
            *(eps, 1.0 if residual is None else residual.scale, cap),
            RESIDUAL=residual is not None,
            NORM=norm_weight is not None,
            CH=whole,
            **constants,
        )
        return
    bytes_ = torch.empty((n_rows, 2, pieces * PIECE), dtype=torch.int8, device=x.device)
    steps = torch.empty((n_rows, pieces), dtype=torch.float32, device=x.device)
    chunk = min(16, whole)
    launch(_split, (n_rows, triton.cdiv(pieces, chunk)), x.device, 4, x, bytes_, steps, K=n_columns, CH=chunk)
    launch(
        _few_rows,
        grid,
        x.device,
        tile.warps,
        *(bytes_, steps, *arguments, other, other.stride(0), n_rows, cap),
        CH=min(tile.pieces, whole),
        BN=ceil_power_of_2(n_rows),
        STAGES=tile.stages,
        **constants,
    )


def _tile(n_rows: int, matrix: DeviceMatrix, *, double: bool) -> Tile:
    """What was fastest on an H100 at the shapes of Gemma 4 E2B (bench/cuda), with a GPU's shared memory in mind."""
    n_outputs, n_columns = matrix.shape
    roomy = common.shared_memory(matrix.codes.device) >= _ROOM
    whole = ceil_power_of_2(n_pieces(n_columns))
    if n_rows > 8:
        if double and n_outputs >= 2048:
            return Tile(32, 1, 4, 3)
        if n_outputs >= 1 << 16:
            return Tile(64, 1, 4, 3)
        return Tile(16, 1, 8, 4) if whole <= 32 else Tile(16, 4, 4, 3 if roomy else 2)
    if n_rows > 1:
        return Tile(16, min(whole, 16), min(whole, 8), 3)
    if whole > 32:
        return Tile(16, whole, 16) if roomy and whole <= 128 else Tile(16, 16, 8, 3)
    if n_outputs >= 1 << 16:
        return Tile(32, whole, min(whole, 2))
    if n_outputs < 2048:
        return Tile(16, whole, max(1, whole // 4))
    return Tile(32, whole, min(whole, 8 if double else 16))


_ROOM = 160 << 10
"""Bytes of shared memory that the larger tiles take."""
