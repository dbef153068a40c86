"""Products with a few rows. A launch of its own makes their inputs integers; then a program makes BLOCK outputs of all
rows, CH pieces of the columns at a time, from tiles that are on their way while others are multiplied. Sums are taken
in an order that knows nothing of the other rows' values. SPLITS as for one row (`one_row`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import gelu, let_next_start, nibbles, rounded, tanh, wait_for_inputs
from cellmd.backends.cuda.kernels.integers import (
    GEGLU,
    GEGLU_OTHER,
    SOFTCAP,
    STEPS,
    both_bytes,
    high_and_low,
    steps_in,
)


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
def _joined(partial, largest, total, piece, SHARES: tl.constexpr, HD: tl.constexpr):
    """Pieces of what attention left in shares (`attention.Shares`), float32 (CH, 128). One share after another: every
    thread has its own columns of all of them, and nothing is exchanged."""
    line = piece * 128 // HD * SHARES
    best = tl.load(largest + line)
    for share in tl.static_range(1, SHARES):
        best = tl.maximum(best, tl.load(largest + line + share))
    at = line[:, None] * HD + (piece * 128 % HD)[:, None] + tl.arange(0, 128)[None, :]
    weight = tl.exp2(tl.load(largest + line) - best)
    whole = weight * tl.load(total + line)
    sum_ = weight[:, None] * tl.load(partial + at)
    for share in tl.static_range(1, SHARES):
        weight = tl.exp2(tl.load(largest + line + share) - best)
        whole += weight * tl.load(total + line + share)
        sum_ += weight[:, None] * tl.load(partial + at + share * HD)
    return sum_ / whole[:, None]


@triton.jit
def split_rows(
    x,
    largest_of,
    total_of,
    bytes_,
    steps,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    CH: tl.constexpr,
    SHARES: tl.constexpr,
    HD: tl.constexpr,
):
    """Rows of x as high and low bytes, (N, 2, pieces * 128), and the steps of their pieces (N, pieces). SHARES > 1:
    x is what attention left in so many shares."""
    let_next_start(OVERLAPS)
    row = tl.program_id(0)
    piece = tl.program_id(1) * CH + tl.arange(0, CH)
    pieces: tl.constexpr = (K + 127) // 128
    column = piece[:, None] * 128 + tl.arange(0, 128)[None, :]
    wait_for_inputs(OVERLAPS)
    if SHARES > 1:
        values = _joined(x, largest_of, total_of, row * (K // 128) + piece, SHARES, HD)
    else:
        values = tl.load(x + row * K + column, mask=column < K, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), axis=1)
    high, low = high_and_low(values, steps_in(largest)[:, None])
    at, inside = row * (2 * pieces * 128) + column, column < pieces * 128
    tl.store(bytes_ + at, high, mask=inside)
    tl.store(bytes_ + at + pieces * 128, low, mask=inside)
    tl.store(steps + row * pieces + piece, largest / STEPS, mask=piece < pieces)


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
def few_rows(
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
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_next_start(OVERLAPS)
    index, split = tl.program_id(0), tl.program_id(1)
    pieces: tl.constexpr = (K + 127) // 128
    codes, scales, out, M, block = codes_0, scales_0, out_0, m_0, index
    if ENDING != GEGLU:
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
    whole: tl.constexpr = (pieces + CH - 1) // CH
    chunks: tl.constexpr = (whole + SPLITS - 1) // SPLITS
    for chunk in tl.range(split * chunks, tl.minimum((split + 1) * chunks, whole), num_stages=STAGES):
        piece = chunk * CH + tl.arange(0, CH)
        first, second, up_first, up_second = codes, codes, codes, codes
        if BITS == 4:
            first = _stored(codes, rows, M, piece, K, BITS, 0, W)
            second = _stored(codes, rows, M, piece, K, BITS, 1, W) if W == 32 else first
            if ENDING == GEGLU:
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
            if ENDING == GEGLU:
                values = _values(up_first, up_second, codes_1, rows, M, piece, K, BITS, j, W)
                part_up = _plus_products(part_up, values, taken)
            if (j + 1) * W == 128 or (j + 1) * W % GROUP == 0:
                of_rows = _scales(scales, rows, M, piece, K, BITS, GROUP, j, W)[:, :, None]
                acc += both_bytes(tl.reshape(part, (CH, BLOCK, BN, 2))).to(tl.float32) * of_rows * step
                part = _no_products(CH, BLOCK, BN)
                if ENDING == GEGLU:
                    of_rows = _scales(scales_1, rows, M, piece, K, BITS, GROUP, j, W)[:, :, None]
                    acc_up += both_bytes(tl.reshape(part_up, (CH, BLOCK, BN, 2))).to(tl.float32) * of_rows * step
                    part_up = _no_products(CH, BLOCK, BN)
    result = tl.sum(acc, axis=0)
    inside = (rows < M)[:, None] & (n < N)[None, :]
    if ENDING == SOFTCAP:
        result = cap * tanh(result / cap)
    elif ENDING == GEGLU:
        result = gelu(result) * tl.sum(acc_up, axis=0)
    elif ENDING == GEGLU_OTHER:
        result = gelu(result) * tl.load(other + n[None, :] * other_stride + rows[:, None], mask=inside, other=0.0)
    tl.store(out + (split * N + n[None, :]) * M + rows[:, None], rounded(result, out.dtype.element_ty), mask=inside)
