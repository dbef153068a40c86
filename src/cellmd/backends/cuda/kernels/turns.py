"""Cosines and sines of positions, a launch for all of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cellmd.backends.cuda.kernels.common import ceil_power_of_2, launch, let_next_start, wait_for_inputs


@triton.jit
def _turns(positions, frequencies, out, OVERLAPS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr):
    let_next_start(OVERLAPS)
    row = tl.program_id(0)
    i = tl.arange(0, WIDTH)
    inside = i < HALF
    frequency = tl.load(frequencies + i, mask=inside, other=0.0)
    wait_for_inputs(OVERLAPS)
    angle = tl.load(positions + row).to(tl.float32) * frequency
    tl.store(out + row * 2 * HALF + i, tl.cos(angle), mask=inside)
    tl.store(out + row * 2 * HALF + HALF + i, tl.sin(angle), mask=inside)


def turns(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """`Ops.rope_table`: positions int32 (N,), frequencies float32 (r / 2,) -> (N, 2, r / 2)."""
    n_rows, half = len(positions), len(frequencies)
    out = torch.empty((n_rows, 2, half), dtype=torch.float32, device=positions.device)
    launch(_turns, (n_rows,), positions.device, 1, positions, frequencies, out, HALF=half, WIDTH=ceil_power_of_2(half))
    return out
