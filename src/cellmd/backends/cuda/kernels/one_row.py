"""Products with one row. A program makes BLOCK outputs from CH pieces of the columns; its warps share the pieces.

A launch costs more than its arithmetic, so what comes before a product is done in it, over and over in every program:
the closing of the residual block before, x = (x + norm(y) * weight) * scale, and the norm of x; or the joining of what
attention left in shares. Whatever does not depend on launches before is asked for before they are waited for: weights,
scales, norms. After that the chain is short: inputs come, are summed and rounded, multiplied, and summed.

With several programs to the columns (SPLITS > 1) each gives its own sum, (SPLITS, M), and whoever takes the result
adds them up, always in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import gelu, let_next_start, rounded, tanh, wait_for_inputs
from cellmd.backends.cuda.kernels.integers import (
    GEGLU,
    GEGLU_OTHER,
    SOFTCAP,
    STEPS,
    both_bytes,
    group_scales,
    high_and_low,
    steps_in,
    stored,
    weights,
)


@triton.jit
def joined(partial, largest, total, first_head, HEADS: tl.constexpr, SHARES: tl.constexpr, HD: tl.constexpr):
    """What attention left in shares (`attention.Shares`), of HEADS heads from first_head on: float32 (HEADS, HD)."""
    line = (first_head + tl.arange(0, HEADS))[:, None] * SHARES + tl.arange(0, SHARES)[None, :]
    parts = tl.load(partial + line[:, :, None] * HD + tl.arange(0, HD)[None, None, :])
    best = tl.load(largest + line)
    weight = tl.exp2(best - tl.max(best, axis=1)[:, None])
    whole = tl.sum(weight * tl.load(total + line), axis=1)
    return tl.sum(parts * weight[:, :, None], axis=1) / whole[:, None]


@triton.jit
def _product(values, taken, scales, step, P: tl.constexpr, CH: tl.constexpr, BLOCK: tl.constexpr):
    """values int8 (P * CH, BLOCK, W) times taken int8 (P * CH, W, 2), scaled and summed: float32 (BLOCK,)."""
    exact = tl.reshape(both_bytes(tl.dot(values, taken, out_dtype=tl.int32)), (P, CH, BLOCK))
    if len(scales.shape) == 2:
        scaled = tl.sum(exact, axis=0).to(tl.float32) * scales
    else:
        scaled = tl.sum(exact.to(tl.float32) * scales, axis=0)
    return tl.sum(scaled * step[:, None], axis=0)


@triton.jit
def one_row(
    x,
    norm_weight,
    y,
    y_weight,
    x_out,
    largest_of,
    total_of,
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
    Y_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    SHARES: tl.constexpr,
    HD: tl.constexpr,
    ENDING: tl.constexpr,
    BLOCK: tl.constexpr,
    CH: tl.constexpr,
    W: tl.constexpr,
):
    let_next_start(OVERLAPS)
    index, split = tl.program_id(0), tl.program_id(1)
    codes, scales, out, M, block = codes_0, scales_0, out_0, m_0, index
    if ENDING != GEGLU:
        first_1 = tl.cdiv(m_0, BLOCK)
        first_2 = first_1 + tl.cdiv(m_1, BLOCK)
        if index >= first_2:
            codes, scales, out, M, block = codes_2, scales_2, out_2, m_2, index - first_2
        elif index >= first_1:
            codes, scales, out, M, block = codes_1, scales_1, out_1, m_1, index - first_1
    rows = block * BLOCK + tl.arange(0, BLOCK)
    piece = split * CH + tl.arange(0, CH)
    P: tl.constexpr = 128 // W
    column = (tl.arange(0, P) * W)[:, None, None] + (piece * 128)[None, :, None] + tl.arange(0, W)[None, None, :]
    inside = column < K

    first = stored(codes, rows, M, piece, K, BITS, 0, W)
    second = stored(codes, rows, M, piece, K, BITS, 1, W) if W == 32 and BITS == 4 else first
    of_rows = group_scales(scales, rows, M, piece, K, BITS, GROUP, W)
    if ENDING == GEGLU:
        up_first = stored(codes_1, rows, M, piece, K, BITS, 0, W)
        up_second = stored(codes_1, rows, M, piece, K, BITS, 1, W) if W == 32 and BITS == 4 else up_first
        of_up = group_scales(scales_1, rows, M, piece, K, BITS, GROUP, W)
    values = weights(first, second, BITS, W)
    if ENDING == GEGLU:
        up_values = weights(up_first, up_second, BITS, W)
    if Y_PARTS > 0:
        closing = tl.load(y_weight + column, mask=inside, other=0.0)
    if NORM:
        norm = tl.load(norm_weight + column, mask=inside, other=0.0)
    wait_for_inputs(OVERLAPS)

    if SHARES > 1:
        HEADS: tl.constexpr = CH * 128 // HD
        of_heads = joined(x, largest_of, total_of, split * HEADS, HEADS, SHARES, HD)
        taken = tl.permute(tl.reshape(of_heads, (CH, P, W)), (1, 0, 2))
    else:
        taken = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    if ENDING == GEGLU_OTHER:
        multiplied = tl.load(other + rows, mask=rows < M, other=0.0)
    if Y_PARTS > 0:
        added = tl.load(y + column, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(1, Y_PARTS):
            added += tl.load(y + part * K + column, mask=inside, other=0.0)
        taken = (taken + added * tl.rsqrt(tl.sum(added * added) / K + eps) * closing) * scale
        if index == 0:  # one program for all
            tl.store(x_out + column, taken, mask=inside)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(taken * taken) / K + eps)
        taken *= norm
    largest = tl.max(tl.max(tl.abs(taken), axis=2), axis=0)
    high, low = high_and_low(taken, steps_in(largest)[None, :, None])
    # columns last until the end, so that tensor cores find four of them in a word
    high, low = tl.reshape(high, (P * CH, 1, W)), tl.reshape(low, (P * CH, 1, W))
    bytes_ = tl.trans(tl.where((tl.arange(0, 2) == 0)[None, :, None], high, low), 0, 2, 1)

    step = largest * factor / STEPS
    result = _product(values, bytes_, of_rows, step, P, CH, BLOCK)
    if ENDING == SOFTCAP:
        result = cap * tanh(result / cap)
    elif ENDING == GEGLU:
        result = gelu(result) * _product(up_values, bytes_, of_up, step, P, CH, BLOCK)
    elif ENDING == GEGLU_OTHER:
        result = gelu(result) * multiplied
    tl.store(out + split * M + rows, rounded(result, out.dtype.element_ty), mask=rows < M)
