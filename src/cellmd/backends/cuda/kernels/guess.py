"""The token that a sampler will choose, before the host knows (`Ops.guess`): a program a row, a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import ceil_power_of_2, launch, let_next_start, wait_for_inputs


@triton.jit
def _guess(
    values,
    ids,
    temperature,
    top_k,
    top_p,
    min_p,
    number,
    chosen,
    report,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
):
    let_next_start(OVERLAPS)
    row = tl.program_id(0)
    i = tl.arange(0, WIDTH)
    # how to choose is known since before the step: no launch of ours writes it
    left = i < tl.load(top_k + row)
    heat, least_sum = tl.load(temperature + row), tl.load(top_p + row)
    least, drawn = tl.load(min_p + row), tl.load(number + row)
    wait_for_inputs(OVERLAPS)
    inside = i < K
    value = tl.load(values + row * K + i, mask=inside, other=float("-inf"))
    token = tl.load(ids + row * K + i, mask=inside, other=0)
    largest = tl.max(value, axis=0)
    likely = tl.where(left & inside, tl.exp((value - largest) / heat), 0.0)
    likely /= tl.sum(likely, axis=0)
    before = tl.cumsum(likely, axis=0) - likely
    kept = tl.where((before < least_sum) & (likely >= least * tl.max(likely, axis=0)), likely, 0.0)
    passed = (tl.cumsum(kept, axis=0) <= drawn * tl.sum(kept, axis=0)) & (kept > 0)
    last = tl.sum((kept > 0).to(tl.int32), axis=0) - 1
    place = tl.minimum(tl.sum(passed.to(tl.int32), axis=0), last)
    choice = tl.sum(tl.where(i == place, token, 0), axis=0)
    tl.store(chosen + row, choice)
    out = report + row * (1 + 2 * K)
    tl.store(out, choice)
    tl.store(out + 1 + i, token, mask=inside)
    tl.store(out + 1 + K + i, value.to(tl.int32, bitcast=True), mask=inside)


def guess(values: torch.Tensor, ids: torch.Tensor, how: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """values float32 and ids int32 (N, k); how: temperature, top_k, top_p, min_p, number, float32 (N,) each. int32 (N,)
    and (N, 1 + 2 k)."""
    n_rows, k = values.shape
    chosen = torch.empty((n_rows,), dtype=torch.int32, device=values.device)
    report = torch.empty((n_rows, 1 + 2 * k), dtype=torch.int32, device=values.device)
    launch(_guess, (n_rows,), values.device, 1, values, ids, *how, chosen, report, K=k, WIDTH=ceil_power_of_2(k))
    return chosen, report
