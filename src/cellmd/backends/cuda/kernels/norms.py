"""Norms of rows, and what comes right after them: the residual stream, rotary positions, the cache. A program a row
(or a head of one), so that a launch may write what it reads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import (
    ceil_power_of_2,
    launch,
    let_next_start,
    rounded,
    wait_for_inputs,
)


@triton.jit
def _norm(x, weight, out, eps, OVERLAPS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WEIGHTED: tl.constexpr):
    let_next_start(OVERLAPS)
    d = tl.arange(0, WIDTH)
    at = tl.program_id(0).to(tl.int64) * D + d
    wait_for_inputs(OVERLAPS)
    values = tl.load(x + at, mask=d < D, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values) / D + eps)
    if WEIGHTED:
        values *= tl.load(weight + d, mask=d < D, other=0.0)
    tl.store(out + at, rounded(values, out.dtype.element_ty), mask=d < D)


@triton.jit
def _add_norm(
    x,
    y,
    weight,
    next_weight,
    normed,
    eps,
    scale,
    OVERLAPS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    Y_PARTS: tl.constexpr,
    NEXT: tl.constexpr,
):
    let_next_start(OVERLAPS)
    d = tl.arange(0, WIDTH)
    at = tl.program_id(0).to(tl.int64) * D + d
    weights = tl.load(weight + d, mask=d < D, other=0.0)
    if NEXT:
        next_weights = tl.load(next_weight + d, mask=d < D, other=0.0)
    wait_for_inputs(OVERLAPS)
    added = tl.load(y + at, mask=d < D, other=0.0).to(tl.float32)
    for part in tl.static_range(1, Y_PARTS):
        added += tl.load(y + (part * tl.num_programs(0)).to(tl.int64) * D + at, mask=d < D, other=0.0)
    sum_ = tl.load(x + at, mask=d < D, other=0.0)
    sum_ = (sum_ + added * tl.rsqrt(tl.sum(added * added) / D + eps) * weights) * scale
    tl.store(x + at, sum_, mask=d < D)
    if NEXT:
        sum_ *= tl.rsqrt(tl.sum(sum_ * sum_) / D + eps) * next_weights
        tl.store(normed + at, rounded(sum_, normed.dtype.element_ty), mask=d < D)


@triton.jit
def _turn(
    q,
    k,
    v,
    q_weight,
    k_weight,
    turns,
    q_out,
    keys,
    values,
    slots,
    positions,
    places,
    capacity,
    eps,
    OVERLAPS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HD: tl.constexpr,
    TURNED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row, head = tl.program_id(0), tl.program_id(1)
    half: tl.constexpr = HD // 2
    i = tl.arange(0, WIDTH)
    inside = i < half
    wait_for_inputs(OVERLAPS)
    if head < HEADS:  # what is called by another name in each branch would have to be of one type
        at_q = (row * HEADS + head) * HD
        _normed_half_turn(q + at_q, q_weight, q_out + at_q, turns, row, i, inside, eps, HD, TURNED, True)
    else:
        place = tl.load(slots + row).to(tl.int64) * places + tl.load(positions + row) % capacity
        if head < HEADS + KV_HEADS:
            at_k = (row * KV_HEADS + head - HEADS) * HD
            to_k = (place * KV_HEADS + head - HEADS) * HD
            _normed_half_turn(k + at_k, k_weight, keys + to_k, turns, row, i, inside, eps, HD, TURNED, True)
        else:
            at_v = (row * KV_HEADS + head - HEADS - KV_HEADS) * HD
            to_v = (place * KV_HEADS + head - HEADS - KV_HEADS) * HD
            _normed_half_turn(v + at_v, k_weight, values + to_v, turns, row, i, inside, eps, HD, TURNED, False)


@triton.jit
def _normed_half_turn(
    source, weight, target, turns, row, i, inside, eps, HD: tl.constexpr, TURNED: tl.constexpr, KEY: tl.constexpr
):
    """A head's channels normed, and if KEY weighted and turned: channel i < TURNED with channel i + HD / 2."""
    half: tl.constexpr = HD // 2
    a = tl.load(source + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + half + i, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(a * a + b * b) / HD + eps)
    a *= factor
    b *= factor
    if KEY:
        a *= tl.load(weight + i, mask=inside, other=0.0)
        b *= tl.load(weight + half + i, mask=inside, other=0.0)
        cos = tl.load(turns + row * 2 * TURNED + i, mask=i < TURNED, other=1.0)
        sin = tl.load(turns + row * 2 * TURNED + TURNED + i, mask=i < TURNED, other=0.0)
        a, b = a * cos - b * sin, b * cos + a * sin
    tl.store(target + i, rounded(a, target.dtype.element_ty), mask=inside)
    tl.store(target + half + i, rounded(b, target.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """`Ops.rms_norm`: over the last axis of x, float32 or bfloat16; the result of `dtype`."""
    width = x.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    launch(
        _norm,
        (x.numel() // width,),
        x.device,
        _warps(width),
        *(x, x if weight is None else weight, out, eps),
        D=width,
        WIDTH=ceil_power_of_2(width),
        WEIGHTED=weight is not None,
    )
    return out


def add_norm_(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    scale: float = 1.0,
    *,
    next_weight: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor | None:
    """`Ops.add_norm_`: x (N, D) float32 becomes (x + rms_norm(y, weight)) * scale; y float32 or bfloat16, or parts
    (S, N, D) float32 of which the sum is meant. With next_weight, rms_norm(x, next_weight) of the new x is given back
    too, of `dtype`."""
    n_rows, width = x.shape
    normed = None if next_weight is None else torch.empty_like(x, dtype=dtype)
    launch(
        _add_norm,
        (n_rows,),
        x.device,
        _warps(width),
        *(x, y, weight, weight if next_weight is None else next_weight, x if normed is None else normed, eps, scale),
        D=width,
        WIDTH=ceil_power_of_2(width),
        Y_PARTS=y.numel() // x.numel(),
        NEXT=next_weight is not None,
    )
    return normed


def turn_and_append_(
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    turns: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor, int] | None,
    slots: torch.Tensor | None,
    positions: torch.Tensor | None,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor | None:
    """`Ops.norm_rope` of q (N, H, hd) and `Ops.append_normed_` of k and v (N, Hkv, hd), of either or both in one
    launch: k and v with their weight, cache, slots and positions, or all of these None. cache: keys and values
    (n_slots, places, Hkv, hd) and the capacity. turns: of `Ops.rope_table`. The turned q, of `dtype`."""
    first = k if q is None else q
    assert first is not None
    n_rows, _, head_dim = first.shape
    out = None if q is None else torch.empty_like(q, dtype=dtype)
    keys, values, capacity = cache or (first, first, 1)
    n_heads = 0 if q is None else q.shape[1]
    n_kv_heads = 0 if k is None else k.shape[1]
    width = max(1, ceil_power_of_2(head_dim // 2))
    no_place = turns.view(torch.int32)  # what is compiled must be of the right type, though it never runs
    given = [first if x is None else x for x in (q, k, v, q_weight, k_weight, turns, out)]
    launch(
        _turn,
        (n_rows, n_heads + 2 * n_kv_heads),
        first.device,
        _warps(width),
        *given,
        *(keys, values, no_place if slots is None else slots, no_place if positions is None else positions),
        *(keys.shape[1], capacity, eps),
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        HD=head_dim,
        TURNED=turns.shape[2],
        WIDTH=width,
    )
    return out


def _warps(width: int) -> int:
    return max(1, min(8, ceil_power_of_2(width) // 256))
