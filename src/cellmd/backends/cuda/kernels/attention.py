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


_MOST_JOINED = 16
"""Shares that are joined by whoever takes the result; more are joined by a launch of its own."""


@dataclass(frozen=True)
class Tile:
    """positions at a time, warps, stages: loads under way; rows of a block, in `prefill_attention`."""

    positions: int
    warps: int
    stages: int
    rows: int = 0


@dataclass(frozen=True)
class Shares:
    """Attention of few rows that is still to be joined. Each of S shares of the positions gives, float32, the values
    summed with the weights exp2(score - largest), partial (N, H, S, hd), the largest score and the sum of the weights,
    largest and total (N, H, S); scores are in powers of two."""

    partial: torch.Tensor
    largest: torch.Tensor
    total: torch.Tensor

    @property
    def n_shares(self) -> int:
        return int(self.largest.shape[2])

    @property
    def head_dim(self) -> int:
        return int(self.partial.shape[3])


@dataclass(frozen=True)
class Raw:
    """What queries, keys and values are before attention: products that are still to be normed and turned.

    k and v (N, Hkv, hd), float32 or bfloat16, are written to the cache; None: they lie there. turns: of
    `Ops.rope_table`.
    """

    q_weight: torch.Tensor
    turns: torch.Tensor
    eps: float
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None
    k_weight: torch.Tensor | None = None


@triton.jit
def _normed_and_turned(a, b, weight, turns, h, inside, eps, HD: tl.constexpr, TURNED: tl.constexpr):
    """Rows of heads, their channels h and HD / 2 + h in a and b, normed and turned."""
    factor = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / HD + eps)[:, None]
    a *= factor * tl.load(weight + h, mask=inside, other=0.0)[None, :]
    b *= factor * tl.load(weight + HD // 2 + h, mask=inside, other=0.0)[None, :]
    cos = tl.load(turns + h, mask=h < TURNED, other=1.0)[None, :]
    sin = tl.load(turns + TURNED + h, mask=h < TURNED, other=0.0)[None, :]
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def _lines(keys, values, base, p, capacity, kv_head, there, h, d, KV_HEADS: tl.constexpr, HD: tl.constexpr):
    """Keys, in halves, and values of the positions p that are there."""
    lines = (((base + p % capacity) * KV_HEADS + kv_head) * HD)[:, None]
    half = there[:, None] & (h < HD // 2)[None, :]
    key_a = operand(tl.load(keys + lines + h[None, :], mask=half, other=0.0))
    key_b = operand(tl.load(keys + lines + HD // 2 + h[None, :], mask=half, other=0.0))
    value = operand(tl.load(values + lines + d[None, :], mask=there[:, None] & (d < HD)[None, :], other=0.0))
    return key_a, key_b, value


@triton.jit
def _and_seen(best, sum_, acc, query_a, query_b, key_a, key_b, value, there):
    """The softmax of scores so far, and of these keys and values."""
    scores = tl.dot(query_b, tl.trans(key_b), tl.dot(query_a, tl.trans(key_a)))
    scores = tl.where(there[None, :], scores * _LOG2_E, _NONE)
    better = tl.maximum(best, tl.max(scores, axis=1))
    safe = tl.where(better == _NONE, 0.0, better)
    weights = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(best - safe)
    return better, sum_ * shrink + tl.sum(weights, axis=1), tl.dot(operand(weights), value, acc * shrink[:, None])


@triton.jit
def _shares(
    q,
    k,
    v,
    q_weight,
    k_weight,
    turns,
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
    eps,
    OVERLAPS: tl.constexpr,
    RAW: tl.constexpr,
    WRITES: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HD: tl.constexpr,
    TURNED: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    READERS: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A share of the positions before a row's own, for the heads that read one key head; the last share has the own
    position too. RAW: queries are normed and turned here, and no other row of the launch writes what this one sees, so
    that keys and values of earlier steps are asked for before what runs before is waited for. WRITES: k and v are
    written."""
    let_next_start(OVERLAPS)
    row, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    readers: tl.constexpr = HEADS // KV_HEADS
    r, h, d = tl.arange(0, READERS), tl.arange(0, HALF), tl.arange(0, WIDTH)
    heads = kv_head * readers + r
    half, real = h < HD // 2, (r < readers)[:, None] & (d < HD)[None, :]
    # where the rows are is known since before the step: no launch of ours writes it
    position = tl.load(positions + row)
    base = tl.load(slots + row).to(tl.int64) * places
    first = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else 0
    length = tl.cdiv(tl.cdiv(position - first, BLOCK), SHARES) * BLOCK
    start = first + share * length
    stop = tl.minimum(start + length, position)
    i = tl.arange(0, BLOCK)
    mine = (share + 1) // SHARES  # the own position is the last of the last share's first block
    own = i == BLOCK * mine - 1
    before = start + i < tl.minimum(stop, start + BLOCK - mine)
    if RAW:
        key_a, key_b, value = _lines(keys, values, base, start + i, capacity, kv_head, before, h, d, KV_HEADS, HD)
        wait_for_inputs(OVERLAPS)
    else:
        wait_for_inputs(OVERLAPS)
        key_a, key_b, value = _lines(keys, values, base, start + i, capacity, kv_head, before, h, d, KV_HEADS, HD)

    at_q = q + (row * HEADS + heads[:, None]) * HD + h[None, :]
    of_half = (r < readers)[:, None] & half[None, :]
    query_a = tl.load(at_q, mask=of_half, other=0.0).to(tl.float32)
    query_b = tl.load(at_q + HD // 2, mask=of_half, other=0.0).to(tl.float32)
    place = ((base + position % capacity) * KV_HEADS + kv_head) * HD
    half_mine, mine_all = (h < HD // 2 * mine)[None, :], (d < HD * mine)[None, :]
    from_k, from_v = (k, v) if WRITES else (keys, values)
    at_own = (row * KV_HEADS + kv_head) * HD if WRITES else place
    own_a = tl.load(from_k + at_own + h[None, :], mask=half_mine, other=0.0)
    own_b = tl.load(from_k + at_own + HD // 2 + h[None, :], mask=half_mine, other=0.0)
    own_value = tl.load(from_v + at_own + d[None, :], mask=mine_all, other=0.0)
    if RAW:
        turns += row * 2 * TURNED
        query_a, query_b = _normed_and_turned(query_a, query_b, q_weight, turns, h, half, eps, HD, TURNED)
    if WRITES:
        own_a, own_b = own_a.to(tl.float32), own_b.to(tl.float32)
        own_a, own_b = _normed_and_turned(own_a, own_b, k_weight, turns, h, half, eps, HD, TURNED)
        own_value = own_value.to(tl.float32)
        own_value *= tl.rsqrt(tl.sum(own_value * own_value, axis=1) / HD + eps)[:, None]
        tl.store(keys + place + h[None, :], rounded(own_a, keys.dtype.element_ty), mask=half_mine)
        tl.store(keys + place + HD // 2 + h[None, :], rounded(own_b, keys.dtype.element_ty), mask=half_mine)
        tl.store(values + place + d[None, :], rounded(own_value, values.dtype.element_ty), mask=mine_all)
    query_a, query_b = operand(query_a), operand(query_b)
    key_a = tl.where(own[:, None], operand(own_a), key_a)
    key_b = tl.where(own[:, None], operand(own_b), key_b)
    value = tl.where(own[:, None], operand(own_value), value)

    best = tl.full((READERS,), _NONE, tl.float32)
    sum_ = tl.zeros((READERS,), tl.float32)
    acc = tl.zeros((READERS, WIDTH), tl.float32)
    if tl.maximum(stop - start, mine) > 0:
        best, sum_, acc = _and_seen(best, sum_, acc, query_a, query_b, key_a, key_b, value, before | own)
        for at in tl.range(start + BLOCK - mine, stop, BLOCK, num_stages=STAGES):
            there = at + i < stop
            key_a, key_b, value = _lines(keys, values, base, at + i, capacity, kv_head, there, h, d, KV_HEADS, HD)
            best, sum_, acc = _and_seen(best, sum_, acc, query_a, query_b, key_a, key_b, value, there)
    if SHARES == 1:
        result = rounded(acc / sum_[:, None], out.dtype.element_ty)
        tl.store(out + (row * HEADS + heads[:, None]) * HD + d[None, :], result, mask=real)
    else:
        index = (row * HEADS + heads) * SHARES + share
        tl.store(largest + index, best, mask=r < readers)
        tl.store(total + index, sum_, mask=r < readers)
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
    parts = tl.load(partial + index[:, None] * HD + d[None, :], mask=(d < HD)[None, :], other=0.0)
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
    raw: Raw | None = None,
    joined: bool = True,
    dtype: torch.dtype = torch.float32,
    shares: int | None = None,
    tile: Tile | None = None,
) -> torch.Tensor | Shares:
    """`Ops.attention` for few rows. q (N, H, hd) float32 or bfloat16; keys and values (n_slots, places, Hkv, hd), of
    which position p lies at p mod capacity (places may be fewer, while no position lies beyond them); slots and
    positions int32 (N,). (N, H, hd) of `dtype`, or, if it need not be joined, maybe `Shares`.

    The positions of each row are cut into `shares` of whole blocks; a second launch joins them, if they are many or
    have to be. raw: q as it comes from
    its product, and maybe keys and values; then each row has a slot of its own, or is another's repetition.
    """
    n_rows, n_heads, head_dim = q.shape
    n_kv_heads = keys.shape[2]
    if tile is None:  # what was fastest on an H200 at the shapes of Gemma 4 E2B (bench/cuda)
        short = n_rows == 1 and window > 0 and head_dim <= 256  # a share is one block or two
        tile = Tile(32 if head_dim <= 256 else 16, 8 if n_rows == 1 else 4, 1 if short else 3)
    reach = min(window, capacity) if window else keys.shape[1]
    if shares is None:
        shares = min(
            ceil_power_of_2(triton.cdiv(reach, tile.positions)), max(1, _PROGRAMS // (n_rows * n_kv_heads)), 128
        )
        shares = 1 << (shares.bit_length() - 1)
    out = torch.empty_like(q, dtype=dtype)
    floats = {"dtype": torch.float32, "device": q.device}
    split = shares > 1
    partial = torch.empty((n_rows, n_heads, shares, head_dim), **floats) if split else q
    largest, total = torch.empty((2, n_rows, n_heads, shares), **floats) if split else (q, q)
    own_k, own_v, q_weight, k_weight, turns, eps = q, q, q, q, q, 0.0
    written = False
    if raw is not None:
        q_weight, turns, eps, written = raw.q_weight, raw.turns, raw.eps, raw.k is not None
        own_k, own_v, k_weight = (q if given is None else given for given in (raw.k, raw.v, raw.k_weight))
    launch(
        _shares,
        (n_rows, n_kv_heads, shares),
        q.device,
        tile.warps,
        *(q, own_k, own_v, q_weight, k_weight, turns, keys, values, slots, positions),
        *(partial, largest, total, out, keys.shape[1], capacity, eps),
        RAW=raw is not None,
        WRITES=written,
        WINDOW=window,
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        HD=head_dim,
        TURNED=0 if raw is None else raw.turns.shape[2],
        HALF=max(16, ceil_power_of_2(head_dim // 2)),
        WIDTH=max(16, ceil_power_of_2(head_dim)),
        READERS=max(16, ceil_power_of_2(n_heads // n_kv_heads)),
        BLOCK=tile.positions,
        SHARES=shares,
        STAGES=tile.stages,
    )
    if not split:
        return out
    if not joined and shares <= _MOST_JOINED:
        return Shares(partial, largest, total)
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
