from __future__ import annotations

import pytest
import torch

from cellmd.backends.cuda import attention
from cellmd.backends.cuda.kernels import towers
from kernel_numbers import BF16
from kernel_numbers import rms_norm as exact_norm

pytestmark = pytest.mark.reference

EPS = 1e-6
F32 = 1e-6
"""A few roundings to float32, relative."""


@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (2, 3, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamp(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, device=device).to(dtype)
    for low, high in ((-0.5, 0.75), (-torch.inf, torch.inf)):
        for narrow in (torch.float32, torch.bfloat16):
            assert torch.equal(towers.clamp(x, low, high, narrow), x.float().clamp(low, high).to(narrow))


@pytest.mark.parametrize(("n_rows", "width"), [(1, 96), (3, 1500), (2, 7)])
def test_geglu_between_other_columns(device: str, n_rows: int, width: int) -> None:
    gate, others = torch.randn(n_rows, width, device=device) * 3, torch.randn(n_rows, width + 9, device=device)
    exact = torch.nn.functional.gelu(gate.double(), approximate="tanh") * others[:, 4:-5].double()
    for dtype, bound in ((torch.float32, F32), (torch.bfloat16, BF16)):
        out = torch.full((n_rows, width + 5), -9.0, dtype=dtype, device=device)
        towers.geglu_into(out[:, 2:-3], gate, others[:, 4:-5])
        # gelu is a sum of halves of its size that nearly cancel below zero
        assert bool(((out[:, 2:-3] - exact).abs() <= bound * exact.abs() + F32 * (gate * others[:, 4:-5]).abs()).all())
        assert bool((out[:, :2] == -9).all())
        assert bool((out[:, -3:] == -9).all())


@pytest.mark.parametrize("shape", [(1, 1, 4), (7, 3, 40), (40, 2, 64)])
def test_norm_heads(device: str, shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, device=device) * torch.logspace(-10, 10, shape[-1], device=device)
    weight = torch.randn(shape[-1], device=device)
    for w in (weight, None):
        exact = exact_norm(x.double(), None if w is None else w.double(), EPS)
        assert bool(((towers.norm_heads(x, w, EPS) - exact).abs() <= F32 * exact.abs()).all())


@pytest.mark.parametrize("shape", [(1, 1, 4), (7, 3, 40), (40, 2, 64)])
def test_norm_turn_2d(device: str, shape: tuple[int, int, int]) -> None:
    n_rows, _, head_dim = shape
    x, weight, quarter = torch.randn(shape, device=device), torch.randn(head_dim, device=device), head_dim // 4
    angles = torch.rand(2, n_rows, quarter, device=device) * 100
    turns = torch.stack([torch.cos(angles), torch.sin(angles)], dim=2)
    exact = exact_norm(x.double(), weight.double(), EPS)
    for half, (cos, sin) in zip((0, 2 * quarter), _cos_sin(turns), strict=True):
        a, b = exact[..., half : half + quarter].clone(), exact[..., half + quarter : half + 2 * quarter].clone()
        exact[..., half : half + quarter] = a * cos - b * sin
        exact[..., half + quarter : half + 2 * quarter] = b * cos + a * sin
    size = 1 + exact.abs().amax(-1, keepdim=True)
    for dtype, bound in ((torch.float32, F32), (torch.bfloat16, BF16)):
        out = towers.norm_turn_2d(x, weight, EPS, turns[0], turns[1], dtype)
        assert bool(((out - exact).abs() <= 2 * F32 * size + bound * exact.abs()).all())


def _cos_sin(turns: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of tables (2, N, 2, q), for each of both (N, 1, q)."""
    return [(table[:, None, 0].double(), table[:, None, 1].double()) for table in turns]


@pytest.mark.parametrize(
    ("n_rows", "past", "future", "n_keys"),
    [(1, 12, 0, 13), (30, 12, 0, 13), (21, 5, 4, 4), (9, 1, 1, 2), (5, 40, 20, 30)],
)
@pytest.mark.parametrize("cap", [50.0, 0.5])
def test_relative_attention(device: str, n_rows: int, past: int, future: int, n_keys: int, cap: float) -> None:
    q, k, v = torch.randn(3, n_rows, 2, 24, device=device)
    relative_keys = torch.randn(n_keys, 2, 24, device=device)
    given = [x.double() for x in (q, k, v, relative_keys)]
    exact = attention.relative(*given, past=past, future=future, cap=cap)
    for dtype, bound in ((torch.float32, 0.0), (torch.bfloat16, BF16)):
        out = towers.relative_attention(q, k, v, relative_keys, past=past, future=future, cap=cap, dtype=dtype)
        # a score of size s is off by a few roundings of the terms it sums, and so is the weight it gives
        size = (q.abs().amax() * (k.abs().amax() + relative_keys.abs().amax()) * 24).double() * v.abs().amax()
        assert bool(((out - exact).abs() <= F32 * size + bound * exact.abs()).all())


@pytest.mark.parametrize(("n_rows", "width", "taps"), [(1, 8, 5), (11, 1500, 5), (3, 33, 1)])
def test_depthwise_conv1d(device: str, n_rows: int, width: int, taps: int) -> None:
    x, kernel = torch.randn(n_rows, width, device=device), torch.randn(width, taps, device=device)
    padded = torch.nn.functional.pad(x.double(), (0, 0, taps - 1, 0))
    terms = [padded[tap : tap + n_rows] * kernel[:, tap].double() for tap in range(taps)]
    bound = F32 * sum(term.abs() for term in terms)
    assert bool(((towers.depthwise_conv1d(x, kernel) - sum(terms)).abs() <= bound).all())
