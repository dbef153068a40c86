from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from cellmd.backends.cuda.kernels.attention import Raw, Shares, decode_attention, prefill_attention
from cellmd.backends.cuda.kernels.linear import joins, open_linear
from cellmd.backends.cuda.kernels.norms import turn_and_append_
from kernel_numbers import BF16, matrix

pytestmark = pytest.mark.reference


@dataclass
class Case:
    """A cache of `capacity` places with every place written, and rows at positions of slots."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    capacity: int
    window: int
    slots: list[int]
    positions: list[int]
    dtype: torch.dtype = torch.bfloat16


CASES = {
    "one row": Case(8, 1, 64, 100, 0, [0], [70]),
    "first position": Case(4, 2, 32, 50, 0, [1], [0]),
    "window": Case(8, 1, 64, 160, 40, [1, 0, 2], [157, 12, 39]),
    "window around the ring": Case(8, 2, 32, 80, 64, [0, 1], [500, 81]),
    "no window around the ring": Case(4, 4, 16, 48, 48, [0, 1], [100, 47]),
    "odd head": Case(3, 1, 40, 64, 0, [0, 2], [63, 33]),
    "rows in no order": Case(2, 1, 32, 96, 33, [2, 0, 2, 1, 0, 2, 2, 0, 1], [50, 3, 7, 90, 88, 51, 0, 4, 91]),
    "float cache": Case(8, 1, 128, 64, 0, [0], [60], torch.float32),
    "wide heads": Case(8, 1, 512, 48, 0, [1, 0], [40, 17]),
}


def exact(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in float64, and how far a plain bfloat16 implementation may be off, entry by entry."""
    out, off = torch.empty_like(q), torch.empty_like(q)
    readers = case.n_heads // case.n_kv_heads
    for i, (slot, position) in enumerate(zip(case.slots, case.positions, strict=True)):
        first = max(0, position - case.window + 1) if case.window else 0
        places = torch.arange(first, position + 1, device=q.device) % case.capacity
        for head in range(case.n_heads):
            k, v = (x[slot, places, head // readers].double() for x in (keys, values))
            scores = k @ q[i, head]
            weights = torch.softmax(scores, 0)
            off_scores = (BF16 * (k.abs() @ q[i, head].abs())).max()
            out[i, head] = weights @ v
            # a weight is off by its scores' errors (its own and the sum's) and by its own rounding and the values'
            off[i, head] = (torch.expm1(2 * off_scores) + 2 * BF16) * (weights @ v.abs())
    return out, off


@pytest.mark.parametrize("shares", [None, 1, 2, 8])
@pytest.mark.parametrize("name", CASES)
def test_attention_of_few_rows(device: str, name: str, shares: int | None) -> None:
    case = CASES[name]
    q, keys, values, slots, positions = inputs(case, device)
    y = decode_attention(q, keys, values, case.capacity, slots, positions, case.window, shares=shares)
    held(y, q, keys, values, case)


@pytest.mark.parametrize("name", CASES)
def test_attention_of_many_rows(device: str, name: str) -> None:
    case = CASES[name]
    q, keys, values, slots, positions = inputs(case, device)
    held(prefill_attention(q, keys, values, case.capacity, slots, positions, case.window), q, keys, values, case)


@pytest.mark.parametrize("window", [0, 20])
def test_a_prompt_after_another(device: str, window: int) -> None:
    slots = [1] * 21 + [0] * 12 + [2]
    case = Case(4, 1, 32, 64, window, slots, [*range(7, 28), *range(12), 50])
    q, keys, values, *integers = inputs(case, device)
    held(prefill_attention(q, keys, values, case.capacity, *integers, case.window), q, keys, values, case)


def test_what_a_row_does_not_see_does_not_matter(device: str) -> None:
    case = Case(4, 1, 32, 64, 10, [0, 1], [30, 20])
    q, keys, values, *integers = inputs(case, device)
    for function in (decode_attention, prefill_attention):
        before = function(q, keys, values, case.capacity, *integers, case.window)
        for x in (keys, values):
            x[0, 31:] = torch.nan
            x[0, :21] = torch.nan
            x[2] = torch.nan
        assert torch.equal(function(q, keys, values, case.capacity, *integers, case.window), before)
        q, keys, values, *integers = inputs(case, device)


@pytest.mark.parametrize("function", [decode_attention, prefill_attention])
def test_large_scores_give_the_value_of_the_largest(device: str, function: object) -> None:
    case = Case(2, 1, 16, 64, 0, [0], [40])
    q, keys, values, *integers = inputs(case, device)
    q[:] = 200.0
    keys[:] = -200.0
    keys[0, 13] = 200.0
    y = function(q, keys, values, case.capacity, *integers, 0)  # type: ignore[operator]
    assert torch.equal(y, values[0, 13].float().expand(1, 2, 16))


def test_results_may_be_bfloat16(device: str) -> None:
    case = CASES["window"]
    q, keys, values, *integers = inputs(case, device)
    for function in (decode_attention, prefill_attention):
        y = function(q, keys, values, case.capacity, *integers, case.window)
        narrow = function(q, keys, values, case.capacity, *integers, case.window, dtype=torch.bfloat16)
        assert bool(((narrow - y).abs() <= BF16 * y.abs()).all())


RAW_CASES = {name: CASES[name] for name in CASES if "no order" not in name} | {
    "wide heads around the ring": Case(8, 1, 256, 70, 64, [2, 0, 1], [200, 5, 69]),
    "a repeated row": Case(8, 1, 128, 64, 0, [1, 0, 0], [33, 17, 17]),
}


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("shares", [None, 1, 4])
@pytest.mark.parametrize("name", RAW_CASES)
def test_attention_from_raw_products(device: str, name: str, shares: int | None, writes: bool) -> None:
    """The same as norms, turns, appending and attention one after another, and the same in the cache."""
    case = RAW_CASES[name]
    q, keys, values, slots, positions = inputs(case, device)
    n_rows, turned = len(slots), case.head_dim // 4
    k, v = torch.randn(2, n_rows, case.n_kv_heads, case.head_dim, device=device)
    q_weight, k_weight = torch.rand(2, case.head_dim, device=device) / 2
    angles = torch.rand(n_rows, turned, device=device) * 6
    if name == "a repeated row":
        for x in (q, k, v, angles):
            x[-1] = x[-2]
    turns = torch.stack([torch.cos(angles), torch.sin(angles)], dim=1)
    fused = keys.clone(), values.clone()
    written = (k, v) if writes else (None, None)
    at = case.capacity, slots, positions
    weights = q_weight, k_weight if writes else None
    turned_q = turn_and_append_(q, *written, *weights, 1e-6, turns, (keys, values, case.capacity), slots, positions)
    raw = Raw(q_weight, turns, 1e-6, *written, k_weight=weights[1])
    y = decode_attention(q, *fused, *at, case.window, shares=shares, raw=raw)
    for mine, theirs in zip(fused, (keys, values), strict=True):
        assert bool(((mine - theirs).abs() <= BF16 * theirs.abs()).all())
    assert turned_q is not None
    held(y, turned_q, keys, values, case)


@pytest.mark.parametrize("n_rows", [2, 3])
@pytest.mark.parametrize("head_dim", [128, 256])
def test_shares_are_joined_by_the_product_that_takes_them(device: str, n_rows: int, head_dim: int) -> None:
    case = Case(8, 1, head_dim, 100, 0, [2, 0, 1][:n_rows], [90, 0, 31][:n_rows])
    q, keys, values, *integers = inputs(case, device)
    at = q, keys, values, case.capacity, *integers, 0
    output = matrix(device, 48, 8 * head_dim, 4, 128)
    assert joins(n_rows, head_dim)
    shares = decode_attention(*at, joined=False, shares=8)
    assert isinstance(shares, Shares)
    whole = decode_attention(*at, shares=8).view(n_rows, -1)
    y, z = open_linear(shares, output).sum(0), open_linear(whole, output).sum(0)
    # the same numbers in other orders of their sums, which may round a step of the product's integers otherwise
    bound = 2.0**-13 * (whole.abs() @ output.decoded(torch.float32).abs().T)
    assert bool(((y - z).abs() <= bound).all())


def inputs(case: Case, device: str) -> tuple[torch.Tensor, ...]:
    q = torch.randn(len(case.slots), case.n_heads, case.head_dim, device=device)
    shape = max(case.slots) + 2, case.capacity, case.n_kv_heads, case.head_dim
    keys, values = (torch.randn(shape, device=device).to(case.dtype) / 4 for _ in range(2))
    integers = (torch.tensor(x, dtype=torch.int32, device=device) for x in (case.slots, case.positions))
    return q, keys, values, *integers


def held(y: torch.Tensor, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, case: Case) -> None:
    expected, off = exact(q.double(), keys, values, case)
    assert bool(((y - expected).abs() <= 2 * off + 1e-6).all())
