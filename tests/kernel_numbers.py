"""Random and awkward inputs, and the yardstick: how far plain bfloat16 is off."""

from __future__ import annotations

import torch

from cellmd.backends.cuda.kernels.layout import pack_int4
from cellmd.backends.cuda.weights import DeviceMatrix

BF16 = 2.0**-8
"""Largest relative rounding error of a bfloat16 is half of this."""


def matrix(
    device: str, n_rows: int, n_columns: int, bits: int, group_size: int, scale_type: torch.dtype = torch.float16
) -> DeviceMatrix:
    """A random matrix; every fifth row of scales is zero, every seventh very large. group_size 0: one a row."""
    if bits == 16:
        numbers = torch.randn(n_rows, n_columns).to(torch.bfloat16)
        return DeviceMatrix((n_rows, n_columns), 16, numbers.to(device))
    group_size = group_size or n_columns
    values = torch.randint(-(1 << bits - 1), 1 << bits - 1, (n_rows, n_columns), dtype=torch.int8)
    scales = (torch.rand(n_rows, -(-n_columns // group_size)) + 0.5) / 64
    scales[::5] = 0
    scales[3::7] *= 1000
    codes = pack_int4(values) if bits == 4 else values
    return DeviceMatrix(
        (n_rows, n_columns), bits, codes.to(device), scales.to(scale_type).to(device), group_size=group_size
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def product_bound(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Twice the error that rounding x and weights to bfloat16 can make in x W^T, entry by entry (float64)."""
    return 2 * BF16 * (x.abs() @ weights.abs().T) + 1e-6
