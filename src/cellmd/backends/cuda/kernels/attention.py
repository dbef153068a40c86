"""Causal attention over the cache: of a few rows whose keys are shared out among programs, and of many rows in blocks.

Both take rows of any slots and positions in any order, and read them on the device only, so that a recorded launch can
run again with others. The query heads that read one key head are the rows of one product. Products are of bfloat16,
sums and the softmax float32. Position p of a sequence lies at p mod capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels import common
from cellmd.backends.cuda.kernels.common import (
    ceil_power_of_2,
    launch,
    let_next_start,
    operand,
    rounded,
    wait_for_inputs,
)

_LOG2_E = tl.constexpr(1.4426950408889634)
_NONE = tl.constexpr(float("-inf"))
_NO_SLOT = tl.constexpr(1 << 30)

_PROGRAMS = 256
"""About so many share the keys of a few rows: twice the multiprocessors of an H100."""


@dataclass(frozen=True)
class Tile:
    """positions at a time, warps, stages: loads under way; rows of a block, in `prefill_attention`."""

    positions: int
    warps: int
    stages: int
    rows: int = 0


@triton.jit
def _shares(
    q,
    keys,
    values,
    slots,
    positions,
    partial,
    largest,
    total,
    out,
    places,
    capacity,
    OVERLAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HD: tl.constexpr,
    WIDTH: tl.constexpr,
    READERS: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    readers: tl.constexpr = HEADS // KV_HEADS
    r = tl.arange(0, READERS)
    d = tl.arange(0, WIDTH)
    heads = kv_head * readers + r
    real = (r < readers)[:, None] & (d < HD)[None, :]
    # where the rows are is known since before the step: no launch of ours writes it
    position = tl.load(positions + row)
    base = tl.load(slots + row).to(tl.int64) * places
    wait_for_inputs(OVERLAPS)
    first = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else 0
    blocks = tl.cdiv(position + 1 - first, BLOCK)
    length = tl.cdiv(blocks, SHARES) * BLOCK
    start = first + share * length
    stop = tl.minimum(start + length, position + 1)

    best = tl.full((READERS,), _NONE, tl.float32)
    sum_ = tl.zeros((READERS,), tl.float32)
    acc = tl.zeros((READERS, WIDTH), tl.float32)
    if start < stop:
        query = operand(tl.load(q + (row * HEADS + heads[:, None]) * HD + d[None, :], mask=real, other=0.0))
        for at in tl.range(start, stop, BLOCK, num_stages=STAGES):
            p = at + tl.arange(0, BLOCK)
            seen = p < stop
            lines = ((base + p % capacity) * KV_HEADS + kv_head) * HD
            there = seen[:, None] & (d < HD)[None, :]
            key = operand(tl.load(keys + lines[:, None] + d[None, :], mask=there, other=0.0))
            value = operand(tl.load(values + lines[:, None] + d[None, :], mask=there, other=0.0))
            scores = tl.where(seen[None, :], tl.dot(query, tl.trans(key)) * _LOG2_E, _NONE)
            better = tl.maximum(best, tl.max(scores, axis=1))
            weights = tl.exp2(scores - better[:, None])
            shrink = tl.exp2(best - better)
            sum_ = sum_ * shrink + tl.sum(weights, axis=1)
            acc = tl.dot(operand(weights), value, acc * shrink[:, None])
            best = better
    if SHARES == 1:
        result = rounded(acc / sum_[:, None], out.dtype.element_ty)
        tl.store(out + (row * HEADS + heads[:, None]) * HD + d[None, :], result, mask=real)
    else:
        index = (row * HEADS + heads) * SHARES + share
        tl.store(largest + index, best, mask=r < readers)
        tl.store(total + index, sum_, mask=r < readers)
        if start < stop:
            tl.store(partial + index[:, None] * HD + d[None, :], acc, mask=real)


@triton.jit
def _join(
    partial,
    largest,
    total,
    out,
    OVERLAPS: tl.constexpr,
    HD: tl.constexpr,
    SHARES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    let_next_start(OVERLAPS)
    line = tl.program_id(0)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    index = line * SHARES + tl.arange(0, SHARES)
    wait_for_inputs(OVERLAPS)
    best = tl.load(largest + index)
    weights = tl.exp2(best - tl.max(best, axis=0))
    whole = tl.sum(weights * tl.load(total + index), axis=0)
    inside = (weights > 0)[:, None] & (d < HD)[None, :]
    parts = tl.load(partial + index[:, None] * HD + d[None, :], mask=inside, other=0.0)
    result = tl.sum(parts * weights[:, None], axis=0) / whole
    tl.store(out + line * HD + d, rounded(result, out.dtype.element_ty), mask=d < HD)


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    capacity: int,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    *,
    dtype: torch.dtype = torch.float32,
    shares: int | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """`Ops.attention` for few rows. q (N, H, hd) float32 or bfloat16; keys and values (n_slots, places, Hkv, hd), of
    which position p lies at p mod capacity (places may be fewer, while no position lies beyond them); slots and
    positions int32 (N,). (N, H, hd) of `dtype`.

    The positions of each row are cut into `shares` of whole blocks; a second launch joins them.
    """
    n_rows, n_heads, head_dim = q.shape
    n_kv_heads = keys.shape[2]
    tile = tile or Tile(positions=32 if head_dim <= 256 else 16, warps=4, stages=3)
    reach = min(window, capacity) if window else keys.shape[1]
    if shares is None:
        shares = min(
            ceil_power_of_2(triton.cdiv(reach, tile.positions)), max(1, _PROGRAMS // (n_rows * n_kv_heads)), 128
        )
        shares = 1 << (shares.bit_length() - 1)
    out = torch.empty_like(q, dtype=dtype)
    floats = {"dtype": torch.float32, "device": q.device}
    split = shares > 1
    partial = torch.empty((n_rows * n_heads * shares * head_dim,), **floats) if split else q
    largest, total = torch.empty((2, n_rows * n_heads * shares), **floats) if split else (q, q)
    launch(
        _shares,
        (n_rows, n_kv_heads, shares),
        q.device,
        tile.warps,
        *(q, keys, values, slots, positions, partial, largest, total, out, keys.shape[1], capacity),
        WINDOW=window,
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        HD=head_dim,
        WIDTH=max(16, ceil_power_of_2(head_dim)),
        READERS=max(16, ceil_power_of_2(n_heads // n_kv_heads)),
        BLOCK=tile.positions,
        SHARES=shares,
        STAGES=tile.stages,
    )
    if split:
        width = min(64, ceil_power_of_2(head_dim))
        grid = n_rows * n_heads, triton.cdiv(head_dim, width)
        launch(_join, grid, q.device, 4, partial, largest, total, out, HD=head_dim, SHARES=shares, WIDTH=width)
    return out


@triton.jit
def _blocks(
    q,
    keys,
    values,
    slots,
    positions,
    out,
    n_rows,
    places,
    capacity,
    OVERLAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HD: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    READERS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_next_start(OVERLAPS)
    # the last rows see most: they go first
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, part = tl.program_id(1), tl.program_id(2)
    readers: tl.constexpr = HEADS // KV_HEADS
    line = tl.arange(0, ROWS * READERS)
    row, r = block * ROWS + line // READERS, line % READERS
    d = tl.arange(0, WIDTH)
    d_out = part * PART + tl.arange(0, PART)
    real = (row < n_rows) & (r < readers)
    at_q = (row * HEADS + kv_head * readers + r)[:, None] * HD
    wait_for_inputs(OVERLAPS)
    query = operand(tl.load(q + at_q + d[None, :], mask=real[:, None] & (d < HD)[None, :], other=0.0))
    slot = tl.load(slots + row, mask=row < n_rows, other=_NO_SLOT)
    position = tl.load(positions + row, mask=row < n_rows, other=-1)

    best = tl.full((ROWS * READERS,), _NONE, tl.float32)
    sum_ = tl.zeros((ROWS * READERS,), tl.float32)
    acc = tl.zeros((ROWS * READERS, PART), tl.float32)
    current = tl.min(slot, axis=0)
    while current < _NO_SLOT:
        own = slot == current
        last = tl.max(tl.where(own, position, -1), axis=0)
        first = 0
        if WINDOW > 0:
            first = tl.maximum(tl.min(tl.where(own, position, _NO_SLOT), axis=0) - WINDOW + 1, 0)
        base = current.to(tl.int64) * places
        for at in tl.range(first, last + 1, BLOCK, num_stages=STAGES):
            p = at + tl.arange(0, BLOCK)
            lines = ((base + p % capacity) * KV_HEADS + kv_head) * HD
            there = p <= last
            key_there, value_there = there[:, None] & (d < HD)[None, :], there[:, None] & (d_out < HD)[None, :]
            key = operand(tl.load(keys + lines[:, None] + d[None, :], mask=key_there, other=0.0))
            value = operand(tl.load(values + lines[:, None] + d_out[None, :], mask=value_there, other=0.0))
            seen = own[:, None] & (p[None, :] <= position[:, None])
            if WINDOW > 0:
                seen = seen & (p[None, :] > position[:, None] - WINDOW)
            scores = tl.where(seen, tl.dot(query, tl.trans(key)) * _LOG2_E, _NONE)
            better = tl.maximum(best, tl.max(scores, axis=1))
            safe = tl.where(better == _NONE, 0.0, better)
            weights = tl.exp2(scores - safe[:, None])
            shrink = tl.exp2(best - safe)
            sum_ = sum_ * shrink + tl.sum(weights, axis=1)
            acc = tl.dot(operand(weights), value, acc * shrink[:, None])
            best = better
        current = tl.min(tl.where(slot > current, slot, _NO_SLOT), axis=0)
    result = rounded(acc / sum_[:, None], out.dtype.element_ty)
    tl.store(out + at_q + d_out[None, :], result, mask=real[:, None] & (d_out < HD)[None, :])


def prefill_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    capacity: int,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    *,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> torch.Tensor:
    """`Ops.attention` for many rows; arguments and result as for `decode_attention`. Fastest where neighbouring rows
    are neighbours in one sequence: a block of rows goes over all positions that one of them sees, once for each of its
    slots."""
    n_rows, n_heads, head_dim = q.shape
    n_kv_heads = keys.shape[2]
    out = torch.empty_like(q, dtype=dtype)
    width = max(16, ceil_power_of_2(head_dim))
    readers = ceil_power_of_2(n_heads // n_kv_heads)
    part = min(width, 256)
    tile = tile or _block_tile(q.device, width, readers)
    launch(
        _blocks,
        (triton.cdiv(n_rows, tile.rows), n_kv_heads, triton.cdiv(head_dim, part)),
        q.device,
        tile.warps,
        *(q, keys, values, slots, positions, out, n_rows, keys.shape[1], capacity),
        WINDOW=window,
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        HD=head_dim,
        WIDTH=width,
        PART=part,
        READERS=readers,
        ROWS=tile.rows,
        BLOCK=tile.positions,
        STAGES=tile.stages,
    )
    return out


def _block_tile(device: torch.device, width: int, readers: int) -> Tile:
    """What was fastest on an H100 (bench/cuda), and what less shared memory has room for."""
    room = common.shared_memory(device)
    if room >= 224 << 10:
        return Tile(64 if width <= 256 else 32, 8, 2, max(1, 128 // readers))
    rows = max(1, 64 // readers)
    if width <= 256:
        return Tile(32, 4, 2, rows)
    return Tile(32 if room >= 160 << 10 else 16, 8, 2, rows)
