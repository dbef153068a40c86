"""Products with one row. A program makes BLOCK outputs from RUNS times CH pieces of the columns. A thread multiplies
words of eight weights of several rows with the inputs that belong there, which it holds as numbers of 16 bits.

A launch costs more than its arithmetic, so what comes before a small product is done in it, over and over in every
program: the closing of the residual block before, x = (x + norm(y) * weight) * scale, and the norm of x. Where programs
are many it costs more than a launch: there `ready_row` does it once (READY). Whatever does not depend on launches
before is asked for before they are waited for: weights, scales, norms.

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
    group_scales,
    halves,
    in_fours,
    plus_products,
    steps_in,
    stored,
)


@triton.jit
def _half(source, piece, HALF: tl.constexpr, K: tl.constexpr):
    """Numbers of the low or high columns of pieces, float32 (CH, 64), 0 beyond the last."""
    column = piece[:, None] * 128 + HALF * 64 + tl.arange(0, 64)[None, :]
    return tl.load(source + column, mask=column < K, other=0.0).to(tl.float32)


@triton.jit
def _added(y, piece, HALF: tl.constexpr, K: tl.constexpr, Y_PARTS: tl.constexpr):
    sum_ = _half(y, piece, HALF, K)
    for part in tl.static_range(1, Y_PARTS):
        sum_ += _half(y + part * K, piece, HALF, K)
    return sum_


@triton.jit
def _put(target, piece, values, HALF: tl.constexpr, K: tl.constexpr):
    column = piece[:, None] * 128 + HALF * 64 + tl.arange(0, 64)[None, :]
    tl.store(target + column, values, mask=column < K)


@triton.jit
def _made_ready(
    x,
    norm_weight,
    y,
    y_weight,
    x_out,
    eps,
    scale,
    piece,
    writes,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    Y_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    CH: tl.constexpr,
):
    """Waits, and makes what is multiplied of the inputs: low and high columns (`in_fours`), int64 (CH * 16,) each, and
    what a unit of each piece is, float32 (CH,). writes: whether this program stores the new x."""
    if Y_PARTS > 0:
        closing_low, closing_high = _half(y_weight, piece, 0, K), _half(y_weight, piece, 1, K)
    if NORM:
        norm_low, norm_high = _half(norm_weight, piece, 0, K), _half(norm_weight, piece, 1, K)
    wait_for_inputs(OVERLAPS)
    low, high = _half(x, piece, 0, K), _half(x, piece, 1, K)
    if Y_PARTS > 0:
        added_low, added_high = _added(y, piece, 0, K, Y_PARTS), _added(y, piece, 1, K, Y_PARTS)
        factor_y = tl.rsqrt(tl.sum(added_low * added_low + added_high * added_high) / K + eps)
        low = (low + added_low * factor_y * closing_low) * scale
        high = (high + added_high * factor_y * closing_high) * scale
        if writes:
            _put(x_out, piece, low, 0, K)
            _put(x_out, piece, high, 1, K)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(low * low + high * high) / K + eps)
        low *= norm_low
        high *= norm_high
    largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=1)
    inverse = steps_in(largest)[:, None]
    return in_fours(low, inverse, CH), in_fours(high, inverse, CH), largest * factor / STEPS


@triton.jit
def ready_row(
    x,
    norm_weight,
    y,
    y_weight,
    x_out,
    fours,
    units,
    eps,
    scale,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    Y_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    CH: tl.constexpr,
):
    """What `one_row` would make ready in each program, once: fours int64 (pieces, 2, 16), units float32 (pieces,)."""
    let_next_start(OVERLAPS)
    piece = tl.arange(0, CH)
    low, high, unit = _made_ready(
        *(x, norm_weight, y, y_weight, x_out, eps, scale, piece, True, OVERLAPS, K, Y_PARTS, NORM, CH)
    )
    pieces: tl.constexpr = (K + 127) // 128
    word = tl.arange(0, CH * 16)
    at, inside = fours + word // 16 * 32 + word % 16, word < pieces * 16
    tl.store(at, low, mask=inside)
    tl.store(at + 16, high, mask=inside)
    tl.store(units + piece, unit, mask=piece < pieces)


@triton.jit
def _run(
    first, second, low_scales, high_scales, low, high, unit, BITS: tl.constexpr, CH: tl.constexpr, BLOCK: tl.constexpr
):
    """The products of a run of pieces, scaled, still to be summed: float32 (BLOCK, CH * 4)."""
    low_values, high_values = halves(first, second, BITS)
    nothing = tl.zeros(low_values.shape, tl.int32)
    sums = plus_products(nothing, low_values, low[None, :])
    if len(low_scales.shape) == 2:
        sums = plus_products(sums, high_values, high[None, :])
        scaled = _by_fours(sums, CH, BLOCK) * (low_scales * unit[None, :])[:, :, None]
    else:
        others = plus_products(nothing, high_values, high[None, :])
        scaled = _by_fours(sums, CH, BLOCK) * low_scales + _by_fours(others, CH, BLOCK) * high_scales
        scaled *= unit[None, :, None]
    return tl.reshape(scaled, (BLOCK, CH * 4))


@triton.jit
def _by_fours(sums, CH: tl.constexpr, BLOCK: tl.constexpr):
    """int32 (BLOCK, CH * 16) -> sums of the four words that a thread has, float32 (BLOCK, CH, 4)."""
    return tl.sum(tl.reshape(sums, (BLOCK, CH, 4, 4)), axis=3).to(tl.float32)


@triton.jit
def one_row(
    x,
    norm_weight,
    y,
    y_weight,
    x_out,
    units,
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
    READY: tl.constexpr,
    Y_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    ENDING: tl.constexpr,
    BLOCK: tl.constexpr,
    CH: tl.constexpr,
    RUNS: tl.constexpr,
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
    first_piece = split * RUNS * CH
    pieces: tl.constexpr = (K + 127) // 128

    asked = ()
    for run in tl.static_range(RUNS):
        piece = first_piece + run * CH + tl.arange(0, CH)
        asked = asked + stored(codes, rows, M, first_piece + run * CH, K, BITS, CH)
        asked = asked + group_scales(scales, rows, M, piece, K, BITS, GROUP)
        if ENDING == GEGLU:
            asked = asked + stored(codes_1, rows, M, first_piece + run * CH, K, BITS, CH)
            asked = asked + group_scales(scales_1, rows, M, piece, K, BITS, GROUP)
    if READY:
        wait_for_inputs(OVERLAPS)
    else:
        piece = first_piece + tl.arange(0, CH)
        low, high, unit = _made_ready(
            *(x, norm_weight, y, y_weight, x_out, eps, scale, piece, index == 0, OVERLAPS, K, Y_PARTS, NORM, CH)
        )
    if ENDING == GEGLU_OTHER:
        multiplied = tl.load(other + rows, mask=rows < M, other=0.0)
    A: tl.constexpr = 8 if ENDING == GEGLU else 4  # asked for in a run
    sums = tl.zeros((BLOCK, CH * 4), tl.float32)
    up_sums = tl.zeros((BLOCK, CH * 4), tl.float32)
    for run in tl.static_range(RUNS):
        if READY:
            piece = first_piece + run * CH + tl.arange(0, CH)
            word = tl.arange(0, CH * 16)
            at = x + (first_piece + run * CH) * 32 + word // 16 * 32 + word % 16
            there = (first_piece + run * CH) * 16 + word < pieces * 16
            low, high = tl.load(at, mask=there, other=0), tl.load(at + 16, mask=there, other=0)
            unit = tl.load(units + piece, mask=piece < pieces, other=0.0)
        of_run = asked[run * A], asked[run * A + 1], asked[run * A + 2], asked[run * A + 3]
        sums += _run(*of_run, low, high, unit, BITS, CH, BLOCK)
        if ENDING == GEGLU:
            of_run = asked[run * A + 4], asked[run * A + 5], asked[run * A + 6], asked[run * A + 7]
            up_sums += _run(*of_run, low, high, unit, BITS, CH, BLOCK)
    result = tl.sum(sums, axis=1)
    if ENDING == SOFTCAP:
        result = cap * tanh(result / cap)
    elif ENDING == GEGLU:
        result = gelu(result) * tl.sum(up_sums, axis=1)
    elif ENDING == GEGLU_OTHER:
        result = gelu(result) * multiplied
    tl.store(out + split * M + rows, rounded(result, out.dtype.element_ty), mask=rows < M)
