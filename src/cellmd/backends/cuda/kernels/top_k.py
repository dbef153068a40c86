"""The largest logits of each row, in order, on the device.

A number and its place become one integer, a key, whose order is theirs (the larger number first, then the smaller
place): no two are equal. Cut a row into at least k parts: k of them have maxima that are at least the k-th largest
maximum, so the k largest keys of the row are at least that. Three launches: maxima of parts; all keys that reach the
k-th largest of them, mostly few more than k, in no order; their ranks, which are counted, so nothing is sorted. Where
very many keys reach it (in rows of equals, say) the last two are slower.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import ceil_power_of_2, launch, let_next_start, wait_for_inputs

MOST = 128
"""As many of the largest are found."""

_LEAST = tl.constexpr(-(1 << 63))
_NO_NUMBER = tl.constexpr(-(1 << 31) + 1)

_BLOCK = 2048
"""Numbers that a program looks at."""

_PARTS = MOST
"""Of a row, or of what it is filled up to."""

_AT_ONCE = tl.constexpr(64)
"""Keys that others are compared with."""


@triton.jit
def _keys(logits, row, at, n):
    number = tl.load(logits + row * n + at, mask=at < n, other=0.0)
    bits = tl.where(number == 0.0, 0.0, number).to(tl.int32, bitcast=True)  # 0.0 and -0.0 are equals
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(number == number, order, _NO_NUMBER)
    key = (order.to(tl.int64) << 32) | (0xFFFFFFFF - at.to(tl.int64))
    return tl.where(at < n, key, _LEAST)


@triton.jit
def _rank(keys, source, n):
    """How many of the n keys at the source are larger than each of these."""
    rank = tl.zeros(keys.shape, tl.int32)
    for start in range(0, n, _AT_ONCE):
        i = start + tl.arange(0, _AT_ONCE)
        others = tl.load(source + i, mask=i < n, other=_LEAST)
        rank += tl.sum((others[None, :] > keys[:, None]).to(tl.int32), axis=1)
    return rank


@triton.jit
def _maxima(
    logits, maxima, counts, n, OVERLAPS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr
):
    let_next_start(OVERLAPS)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts: tl.constexpr = BLOCK // SIZE
    part = block * parts + tl.arange(0, parts)
    wait_for_inputs(OVERLAPS)
    keys = _keys(logits, row, part[:, None] * SIZE + tl.arange(0, SIZE)[None, :], n)
    tl.store(maxima + row * PARTS + part, tl.max(keys, axis=1))
    if block == 0:
        tl.store(counts + row, 0)


@triton.jit
def _collect(
    logits,
    maxima,
    counts,
    candidates,
    n,
    k,
    room,
    OVERLAPS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait_for_inputs(OVERLAPS)
    largest = tl.load(maxima + row * PARTS + tl.arange(0, PARTS))
    rank = _rank(largest, maxima + row * PARTS, PARTS)
    least = tl.max(tl.where(rank >= k - 1, largest, _LEAST), axis=0)
    keys = _keys(logits, row, block * BLOCK + tl.arange(0, BLOCK), n)
    reaches = (keys >= least) & (keys != _LEAST)
    count = tl.sum(reaches.to(tl.int32), axis=0)
    if count > k:  # no more than k of a block can be among them
        first = tl.atomic_add(counts + row, k)
        for j in range(k):
            best = tl.max(keys, axis=0)
            tl.store(candidates + row * room + first + j, best)
            keys = tl.where(keys == best, _LEAST, keys)
    elif count > 0:
        first = tl.atomic_add(counts + row, count)
        place = tl.cumsum(reaches.to(tl.int32), axis=0) - 1
        tl.store(candidates + row * room + first + place, keys, mask=reaches)


@triton.jit
def _ordered(
    counts,
    candidates,
    values,
    ids,
    k,
    room,
    OVERLAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    wait_for_inputs(OVERLAPS)
    count = tl.load(counts + row)
    if first < count:
        i = first + tl.arange(0, BLOCK)
        keys = tl.load(candidates + row * room + i, mask=i < count, other=_LEAST)
        rank = _rank(keys, candidates + row * room, count)
        order = (keys >> 32).to(tl.int32)
        number = tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)
        inside = (i < count) & (rank < k)
        tl.store(values + row * k + rank, number, mask=inside)
        tl.store(ids + row * k + rank, (0xFFFFFFFF - (keys & 0xFFFFFFFF)).to(tl.int32), mask=inside)


def top_k(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of logits float32 (N, V), k <= min(V, MOST): values float32 (N, k), descending, and
    their places int32 (N, k); of equal ones the first come first, and what is not a number last."""
    n_rows, n = logits.shape
    blocks = triton.cdiv(n, _BLOCK)
    whole = ceil_power_of_2(blocks) * _BLOCK
    parts = min(_PARTS, whole)
    size = whole // parts
    room = blocks * k
    device = logits.device
    maxima, candidates = (torch.empty((n_rows, m), dtype=torch.int64, device=device) for m in (parts, room))
    counts = torch.empty((n_rows,), dtype=torch.int32, device=device)
    values = torch.empty((n_rows, k), dtype=torch.float32, device=device)
    ids = torch.empty((n_rows, k), dtype=torch.int32, device=device)
    block = max(_BLOCK, size)
    rows = n_rows, whole // block
    launch(_maxima, rows, device, 4, logits, maxima, counts, n, PARTS=parts, BLOCK=block, SIZE=size)
    given = logits, maxima, counts, candidates, n, k, room
    launch(_collect, (n_rows, blocks), device, 8, *given, PARTS=parts, BLOCK=_BLOCK)
    found = counts, candidates, values, ids, k, room
    launch(_ordered, (n_rows, triton.cdiv(room, MOST)), device, 4, *found, BLOCK=MOST)
    return values, ids
