"""The largest logits of each row, in order, on the device.

A number and its place become one integer whose order is theirs (the larger number first, then the smaller place), so
that sorting needs no second array. Blocks of a row give their largest, which are the next launch's row, until one block
is left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import ceil_power_of_2, launch, let_next_start, wait_for_inputs

_BLOCK = 2048
_LEAST = tl.constexpr(-(1 << 63))
_NO_NUMBER = tl.constexpr(-(1 << 31) + 1)


@triton.jit
def _reduce(
    logits,
    keys,
    out,
    values,
    ids,
    n,
    k,
    OVERLAPS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    KEPT: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(OVERLAPS)
    if FIRST:
        number = tl.load(logits + row * n + at, mask=at < n, other=0.0)
        bits = tl.where(number == 0.0, 0.0, number).to(tl.int32, bitcast=True)  # 0.0 and -0.0 are equals
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        order = tl.where(number == number, order, _NO_NUMBER)
        key = (order.to(tl.int64) << 32) | (0xFFFFFFFF - at.to(tl.int64))
        key = tl.where(at < n, key, _LEAST)
    else:
        key = tl.load(keys + row * n + at, mask=at < n, other=_LEAST)
    best = tl.topk(key, KEPT)
    place = tl.arange(0, KEPT)
    if LAST:
        order = (best >> 32).to(tl.int32)
        number = tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)
        tl.store(values + row * k + place, number, mask=place < k)
        tl.store(ids + row * k + place, (0xFFFFFFFF - (best & 0xFFFFFFFF)).to(tl.int32), mask=place < k)
    else:
        tl.store(out + (row * tl.num_programs(1) + block) * KEPT + place, best)


def top_k(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of logits float32 (N, V), k <= min(V, 1024): values float32 (N, k), descending, and
    their places int32 (N, k); of equal ones the first come first, and what is not a number last."""
    n_rows, n = logits.shape
    kept = max(2, ceil_power_of_2(k))
    block = max(_BLOCK, 2 * kept)
    values = torch.empty((n_rows, k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((n_rows, k), dtype=torch.int32, device=logits.device)
    keys, first = ids, True
    while True:
        blocks = triton.cdiv(n, block)
        shape = (n_rows, blocks * kept) if blocks > 1 else (0,)
        out = torch.empty(shape, dtype=torch.int64, device=logits.device)
        arguments = logits, keys, out, values, ids, n, k
        flags = {"FIRST": first, "LAST": blocks == 1}
        size = block if blocks > 1 else max(ceil_power_of_2(n), 2 * kept)
        launch(_reduce, (n_rows, blocks), logits.device, 8, *arguments, BLOCK=size, KEPT=kept, **flags)
        if blocks == 1:
            return values, ids
        keys, n, first = out, blocks * kept, False
