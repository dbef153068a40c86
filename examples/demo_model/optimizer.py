"""Muon for the matrices (steps of equal size in every direction), AdamW for all else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch


@torch.no_grad()
def orthogonal(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """(K, R, C) -> about the nearest matrices with equal singular values, by Newton-Schulz in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum, made orthogonal; matrices of one shape are done together."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], momentum: float = 0.95) -> None:
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for weight in weights:
            shapes[weight.shape].append(weight)
        self.groups = list(shapes.values())
        self.momentum = momentum
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([w.grad for w in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            step = orthogonal(gradient.lerp(buffer, self.momentum))
            size = rate * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            torch._foreach_add_(group, list(step.unbind()), alpha=-size)


def split(
    named: dict[str, torch.nn.Parameter],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Matrices for Muon; tables, heads and convolutions; and vectors."""
    muon, tables, vectors = [], [], []
    for name, weight in named.items():
        if weight.ndim < 2:
            vectors.append(weight)
        elif weight.ndim == 2 and not any(part in name for part in ("embed_tokens", ".heads.", "lm_head")):
            muon.append(weight)
        else:
            tables.append(weight)
    return muon, tables, vectors
