"""Symmetric INT4 as cellmd stores it, for training through it (straight-through) and for measuring it."""

from __future__ import annotations

import torch

LEVELS = 7


def quantizable(name: str, weight: torch.Tensor) -> bool:
    """Every 2-D weight; norms, convolutions, position tables, biases and clip ranges stay."""
    return weight.ndim == 2 and "position_embedding" not in name


def rounded(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The nearest INT4 values, one scale = max|w| / 7 for each `group` columns (0: for each row)."""
    columns = weight.shape[1]
    width = columns if group == 0 or columns % group else group
    grouped = weight.reshape(weight.shape[0], -1, width)
    scale = (grouped.abs().amax(-1, keepdim=True) / LEVELS).clamp(min=1e-8)
    return ((grouped / scale).round().clamp(-LEVELS, LEVELS) * scale).reshape_as(weight)


def straight_through(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Forward the rounded weight, backward as if it had not been rounded."""
    return weight + (rounded(weight.detach(), group) - weight.detach())


__all__ = ["quantizable", "rounded", "straight_through"]
