"""What the towers do beside products, and what many rows of a prompt do: a launch each.

Masks join what is as wide as they are: newer interpreters of Triton refuse others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import (
    ceil_power_of_2,
    gelu,
    launch,
    let_next_start,
    rounded,
    tanh,
    wait_for_inputs,
)

_BLOCK = 1024
"""Numbers a program takes where each is for itself."""

_NONE = tl.constexpr(float("-inf"))


@triton.jit
def _clamp(x, out, n, low, high, OVERLAPS: tl.constexpr, BLOCK: tl.constexpr):
    let_next_start(OVERLAPS)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(OVERLAPS)
    values = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    values = tl.minimum(tl.maximum(values, low), high)
    tl.store(out + at, rounded(values, out.dtype.element_ty), mask=at < n)


def clamp(x: torch.Tensor, low: float, high: float, dtype: torch.dtype) -> torch.Tensor:
    """min(max(x, low), high), of `dtype`; x float32 or bfloat16 of any shape."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    launch(_clamp, (triton.cdiv(x.numel(), _BLOCK),), x.device, 4, x, out, x.numel(), low, high, BLOCK=_BLOCK)
    return out


@triton.jit
def _gate(gate, up, out, up_stride, out_stride, OVERLAPS: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    let_next_start(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(OVERLAPS)
    gated = gelu(tl.load(gate + row * F + f, mask=f < F, other=0.0))
    gated *= tl.load(up + row * up_stride + f, mask=f < F, other=0.0)
    tl.store(out + row * out_stride + f, rounded(gated, out.dtype.element_ty), mask=f < F)


def geglu_into(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
    """out (N, F) = `Ops.geglu` of gate (N, F) and up (N, F), float32; rows of up and out may lie apart."""
    n_rows, width = gate.shape
    block = min(_BLOCK, ceil_power_of_2(width))
    grid = n_rows, triton.cdiv(width, block)
    launch(_gate, grid, gate.device, 4, gate, up, out, up.stride(0), out.stride(0), F=width, BLOCK=block)


@triton.jit
def _norm_lines(
    x,
    weight,
    out,
    n_lines,
    eps,
    OVERLAPS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    let_next_start(OVERLAPS)
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    d = tl.arange(0, WIDTH)
    at = line[:, None] * D + d[None, :]
    inside = (line < n_lines)[:, None] & (d < D)[None, :]
    wait_for_inputs(OVERLAPS)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, axis=1) / D + eps)[:, None]
    if WEIGHTED:
        values *= tl.load(weight + d, mask=d < D, other=0.0)[None, :]
    tl.store(out + at, values, mask=inside)


def norm_heads(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """`Ops.rms_norm` of heads x (N, H, hd), float32, several of them in a program."""
    width = x.shape[-1]
    out, n_lines, lines = torch.empty_like(x), x.numel() // width, _lines(width)
    launch(
        _norm_lines,
        (triton.cdiv(n_lines, lines),),
        x.device,
        4,
        *(x, x if weight is None else weight, out, n_lines, eps),
        D=width,
        WIDTH=ceil_power_of_2(width),
        LINES=lines,
        WEIGHTED=weight is not None,
    )
    return out


@triton.jit
def _turned(x, weight, turns, at, place, i, inside, START: tl.constexpr, QUARTER: tl.constexpr):
    """Channels START + i and START + QUARTER + i, weighted, before and after they are turned by the angles of place."""
    a = tl.load(x + at + START, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + START + QUARTER, mask=inside, other=0.0).to(tl.float32)
    squares = a * a + b * b
    a *= tl.load(weight + START + i, mask=i < QUARTER, other=0.0)[None, :]
    b *= tl.load(weight + START + QUARTER + i, mask=i < QUARTER, other=0.0)[None, :]
    cos = tl.load(turns + place, mask=inside, other=1.0)
    sin = tl.load(turns + place + QUARTER, mask=inside, other=0.0)
    return squares, a * cos - b * sin, b * cos + a * sin


@triton.jit
def _norm_turn_2d(
    x,
    weight,
    turns_x,
    turns_y,
    out,
    n_lines,
    eps,
    OVERLAPS: tl.constexpr,
    HEADS: tl.constexpr,
    HD: tl.constexpr,
    WIDTH: tl.constexpr,
    LINES: tl.constexpr,
):
    let_next_start(OVERLAPS)
    quarter: tl.constexpr = HD // 4
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    i = tl.arange(0, WIDTH)
    inside = (line < n_lines)[:, None] & (i < quarter)[None, :]
    at = line[:, None] * HD + i[None, :]
    place = (line // HEADS)[:, None] * (2 * quarter) + i[None, :]
    wait_for_inputs(OVERLAPS)
    squares, a_x, b_x = _turned(x, weight, turns_x, at, place, i, inside, 0, quarter)
    squares_y, a_y, b_y = _turned(x, weight, turns_y, at, place, i, inside, 2 * quarter, quarter)
    factor = tl.rsqrt(tl.sum(squares + squares_y, axis=1) / HD + eps)[:, None]
    tl.store(out + at, rounded(a_x * factor, out.dtype.element_ty), mask=inside)
    tl.store(out + at + quarter, rounded(b_x * factor, out.dtype.element_ty), mask=inside)
    tl.store(out + at + 2 * quarter, rounded(a_y * factor, out.dtype.element_ty), mask=inside)
    tl.store(out + at + 3 * quarter, rounded(b_y * factor, out.dtype.element_ty), mask=inside)


def norm_turn_2d(
    x: torch.Tensor, weight: torch.Tensor, eps: float, turns_x: torch.Tensor, turns_y: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """`Ops.norm_rope_2d` of x (N, H, hd) float32, of `dtype`."""
    n_rows, n_heads, head_dim = x.shape
    out, n_lines, lines = torch.empty_like(x, dtype=dtype), n_rows * n_heads, _lines(head_dim)
    launch(
        _norm_turn_2d,
        (triton.cdiv(n_lines, lines),),
        x.device,
        4,
        *(x, weight, turns_x, turns_y, out, n_lines, eps),
        HEADS=n_heads,
        HD=head_dim,
        WIDTH=ceil_power_of_2(head_dim // 4),
        LINES=lines,
    )
    return out


def _lines(width: int) -> int:
    """Lines of so many numbers a program takes."""
    return max(1, 2 * _BLOCK // ceil_power_of_2(width))


@triton.jit
def _near(
    q,
    k,
    v,
    relative_keys,
    out,
    n_rows,
    n_relative,
    past,
    ahead,
    cap,
    OVERLAPS: tl.constexpr,
    HEADS: tl.constexpr,
    HD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    let_next_start(OVERLAPS)
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    channels = (d < HD)[None, :]
    at = (row[:, None] * HEADS + head) * HD + d[None, :]
    wait_for_inputs(OVERLAPS)
    query = tl.load(q + at, mask=(row < n_rows)[:, None] & channels, other=0.0)
    best = tl.full((ROWS,), _NONE, tl.float32)
    sum_ = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for distance in range(-ahead, past):
        seen = (row - distance >= 0) & (row - distance < n_rows)
        there = seen[:, None] & channels
        key = tl.load(k + at - distance * (HEADS * HD), mask=there, other=0.0)
        value = tl.load(v + at - distance * (HEADS * HD), mask=there, other=0.0)
        place = past - distance + tl.zeros((WIDTH,), tl.int32)
        known = (d < HD) & (place < n_relative)
        bias = tl.load(relative_keys + (place * HEADS + head) * HD + d, mask=known, other=0.0)
        scores = cap * tanh(tl.sum(query * (key + bias[None, :]), axis=1) / cap)
        scores = tl.where(seen, scores, _NONE)
        better = tl.maximum(best, scores)
        safe = tl.where(better == _NONE, 0.0, better)
        weights = tl.exp(scores - safe)
        shrink = tl.exp(best - safe)
        sum_ = sum_ * shrink + weights
        acc = acc * shrink[:, None] + weights[:, None] * value
        best = better
    result = acc / tl.where(row < n_rows, sum_, 1.0)[:, None]
    tl.store(out + at, rounded(result, out.dtype.element_ty), mask=(row < n_rows)[:, None] & channels)


def relative_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    relative_keys: torch.Tensor,
    *,
    past: int,
    future: int,
    cap: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`Ops.attention_relative`, all of it in float32; the result of `dtype`."""
    n_rows, n_heads, head_dim = q.shape
    out = torch.empty_like(q, dtype=dtype)
    rows = 8
    launch(
        _near,
        (triton.cdiv(n_rows, rows), n_heads),
        q.device,
        4,
        *(q, k, v, relative_keys, out, n_rows, len(relative_keys), past, max(future, 1) - 1, cap),
        HEADS=n_heads,
        HD=head_dim,
        WIDTH=ceil_power_of_2(head_dim),
        ROWS=rows,
    )
    return out


@triton.jit
def _convolve(x, kernel, out, OVERLAPS: tl.constexpr, D: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    let_next_start(OVERLAPS)
    row = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(OVERLAPS)
    sum_ = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(TAPS):
        source = row - TAPS + 1 + tap + tl.zeros((BLOCK,), tl.int32)
        value = tl.load(x + source * D + d, mask=(d < D) & (source >= 0), other=0.0)
        sum_ += value * tl.load(kernel + d * TAPS + tap, mask=d < D, other=0.0)
    tl.store(out + row * D + d, sum_, mask=d < D)


def depthwise_conv1d(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """`Ops.depthwise_conv1d`."""
    n_rows, width = x.shape
    out, block = torch.empty_like(x), min(_BLOCK, ceil_power_of_2(width))
    grid = n_rows, triton.cdiv(width, block)
    launch(_convolve, grid, x.device, 4, x, kernel, out, D=width, TAPS=kernel.shape[1], BLOCK=block)
    return out
