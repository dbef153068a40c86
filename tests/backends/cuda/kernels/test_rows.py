from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cellmd.backends.cuda.kernels import lookup, repack
from cellmd.backends.cuda.kernels.layout import n_pieces, unpack_int4
from cellmd.backends.cuda.kernels.norms import add_norm_, rms_norm, turn_and_append_
from cellmd.backends.cuda.kernels.top_k import top_k
from cellmd.backends.cuda.weights import DeviceMatrix, DeviceTable, repack_int4
from cellmd.quant.layouts import pack
from kernel_numbers import BF16, matrix
from kernel_numbers import rms_norm as exact_norm

pytestmark = pytest.mark.reference

EPS = 1e-6
F32 = 1e-6
"""A few roundings to float32, relative."""


@pytest.mark.parametrize("shape", [(1, 1536), (3, 7), (2, 4, 40), (1, 1)])
def test_rms_norm(device: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=device) * torch.logspace(-10, 10, shape[-1], device=device)
    weight = torch.randn(shape[-1], device=device)
    for w in (weight, None):
        exact = exact_norm(x.double(), None if w is None else w.double(), EPS)
        assert bool(((rms_norm(x, w, EPS) - exact).abs() <= F32 * exact.abs()).all())
        narrow = rms_norm(x, w, EPS, dtype=torch.bfloat16)
        assert bool(((narrow - exact).abs() <= BF16 * exact.abs()).all())
    assert not bool(rms_norm(torch.zeros_like(x), weight, EPS).any())


@pytest.mark.parametrize(("n_rows", "width"), [(1, 1536), (5, 33), (2, 256)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_add_norm(device: str, n_rows: int, width: int, scale: float) -> None:
    x, y = torch.randn(2, n_rows, width, device=device)
    weight, next_weight = torch.randn(2, width, device=device)
    exact = (x.double() + exact_norm(y.double(), weight.double(), EPS)) * scale
    bound = F32 * (x.abs() + exact.abs())
    for following, added in ((None, y), (None, torch.stack([y / 4, y * 0.75])), (next_weight, y)):
        closed = x.clone()
        normed = add_norm_(closed, added, weight, EPS, scale, next_weight=following)
        assert bool(((closed - exact).abs() <= bound).all())
    assert normed is not None
    following = exact_norm(closed.double(), next_weight.double(), EPS)
    assert bool(((normed - following).abs() <= BF16 * following.abs()).all())


@pytest.mark.parametrize(("head_dim", "turned"), [(16, 8), (64, 8), (40, 20), (512, 64)])
def test_turn_and_append(device: str, head_dim: int, turned: int) -> None:
    n_rows, n_heads, n_kv_heads, capacity = 5, 3, 2, 7
    q = torch.randn(n_rows, n_heads, head_dim, device=device)
    k, v = torch.randn(2, n_rows, n_kv_heads, head_dim, device=device)
    q_weight, k_weight = torch.randn(2, head_dim, device=device)
    angles = torch.rand(n_rows, turned, device=device) * 100
    turns = torch.stack([torch.cos(angles), torch.sin(angles)], dim=1)
    slots = torch.tensor([0, 2, 2, 1, 0], dtype=torch.int32, device=device)
    positions = torch.tensor([0, 9, 8, 20, 3], dtype=torch.int32, device=device)

    def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        normed = exact_norm(x.double(), weight.double(), EPS)
        a, b = normed[..., :turned], normed[..., head_dim // 2 : head_dim // 2 + turned]
        cos, sin = turns.double()[:, :1], turns.double()[:, 1:]
        out = normed.clone()
        out[..., :turned] = a * cos - b * sin
        out[..., head_dim // 2 : head_dim // 2 + turned] = b * cos + a * sin
        return out

    keys, values = (torch.full((3, capacity, n_kv_heads, head_dim), -9.0, device=device) for _ in range(2))
    at = slots.long(), (positions % capacity).long()
    cache = keys, values, capacity
    out = turn_and_append_(q, k, v, q_weight, k_weight, EPS, turns, cache, slots, positions)
    assert out is not None
    for y, x in (
        (out, exact(q, q_weight)),
        (keys[at], exact(k, k_weight)),
        (values[at], exact_norm(v.double(), None, EPS)),
    ):
        assert bool(((y - x).abs() <= 2 * F32 * (1 + x.abs().amax(-1, keepdim=True))).all())
    assert int((keys != -9).any(-1).any(-1).sum()) == n_rows

    alone = turn_and_append_(q, None, None, q_weight, None, EPS, turns, None, None, None, dtype=torch.bfloat16)
    assert alone is not None
    assert bool(((alone - out).abs() <= BF16 * out.abs()).all())
    others = torch.zeros_like(keys, dtype=torch.bfloat16), torch.zeros_like(values, dtype=torch.bfloat16)
    turn_and_append_(None, k, v, None, k_weight, EPS, turns, (*others, capacity), slots, positions)
    for narrow, full in zip(others, (keys, values), strict=True):
        assert bool(((narrow[at] - full[at]).abs() <= BF16 * full[at].abs()).all())


def table(device: str, n_columns: int, bits: int, group: int, *, factors: bool) -> DeviceTable:
    n_rows = 9
    if bits == 16:
        return DeviceTable((n_rows, n_columns), 16, torch.randn(n_rows, n_columns).bfloat16().to(device))
    width = (n_columns + 1) // 2 if bits == 4 else n_columns
    low, high, kind = (0, 256, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    codes = torch.randint(low, high, (n_rows, width), dtype=kind)
    n_groups = -(-n_columns // group)
    if factors:
        scales = torch.randint(-128, 128, (n_rows, n_groups), dtype=torch.int8)
        return DeviceTable(
            (n_rows, n_columns), bits, codes.to(device), scales.to(device), torch.rand(n_rows).to(device), group
        )
    return DeviceTable(
        (n_rows, n_columns), bits, codes.to(device), torch.rand(n_rows, n_groups).half().to(device), None, group
    )


IDS = [3, 0, 8, 8, 5]


@pytest.mark.parametrize(
    ("bits", "group", "factors"),
    [(4, 32, False), (4, 256, True), (4, 700, True), (8, 32, True), (8, 700, False), (16, 0, False)],
)
@pytest.mark.parametrize("kind", ["table", "matrix"])
def test_embed(device: str, kind: str, bits: int, group: int, factors: bool) -> None:
    n_columns = 700
    ids = torch.tensor(IDS, dtype=torch.int32, device=device)
    held: DeviceMatrix | DeviceTable
    if kind == "table":
        held = table(device, n_columns, bits, group, factors=factors)
    else:
        held = matrix(device, 9, n_columns, bits, group)
    for start, stop in ((0, None), (0, n_columns), (16, 48), (256, n_columns)):
        exact = held.gather(ids, start, n_columns if stop is None else stop) * 2.5
        y = lookup.embed(held, ids, 2.5, start, stop)
        assert bool(((y - exact).abs() <= F32 * exact.abs()).all())


@pytest.mark.parametrize(("part", "n_parts", "start"), [(256, 3, 256), (40, 2, 0)])
def test_per_layer_inputs(device: str, part: int, n_parts: int, start: int) -> None:
    held = table(device, 1024, 4, 256, factors=True)
    ids = torch.tensor(IDS, dtype=torch.int32, device=device)
    context = torch.randn(len(IDS), part * n_parts, device=device) * 20
    weight = torch.randn(part, device=device)
    y = lookup.per_layer_inputs(context.clone(), 0.03, weight, EPS, held, ids, 16.0, start, 0.5)
    normed = exact_norm((context.double() * 0.03).reshape(len(IDS), n_parts, part), weight.double(), EPS)
    looked_up = held.gather(ids, start, start + part * n_parts).double() * 16
    exact = (normed.reshape(len(IDS), -1) + looked_up) * 0.5
    assert bool(((y - exact).abs() <= F32 * (1 + exact.abs() + looked_up.abs())).all())


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (70, 300), (16, 256), (33, 1000)])
def test_repack(device: str, n_rows: int, n_columns: int) -> None:
    """As torch alone does it, from codes as they are packed for a file."""
    values = torch.randint(-8, 8, (n_rows, n_columns), dtype=torch.int8)
    stored = torch.from_numpy(pack(values.numpy(), "i4", "tile16").copy()).to(device)
    want, got = torch.full((2, n_rows, 64 * n_pieces(n_columns)), 99, dtype=torch.uint8, device=device)
    repack_int4(stored, want, n_columns)
    repack.repack_int4(stored, got, n_columns)
    assert torch.equal(got, want)
    assert torch.equal(unpack_int4(got, n_columns).cpu(), values)


@pytest.mark.parametrize(("n_rows", "n_columns", "group"), [(1, 1, 0), (70, 300, 32), (16, 256, 128), (3, 1000, 0)])
def test_decoded(device: str, n_rows: int, n_columns: int, group: int) -> None:
    held = matrix(device, n_rows, n_columns, 4, group)
    exact = held.decoded(torch.float32)
    out = torch.full((n_rows, n_columns), torch.nan, dtype=torch.bfloat16, device=device)
    assert lookup.decoded(held, out) is out
    assert torch.equal(out, exact.bfloat16())
    assert torch.equal(lookup.decoded(replace(held, scales=held.scales.float())), out)  # type: ignore[union-attr]


@pytest.mark.parametrize(("n_rows", "n", "k"), [(1, 5000, 64), (3, 100, 7), (2, 2048, 1), (1, 1, 1), (1, 9000, 100)])
def test_top_k(device: str, n_rows: int, n: int, k: int) -> None:
    logits = torch.randn(n_rows, n, device=device) * 20
    logits[:, n // 2] = -0.0
    if n > 50:
        logits[:, ::50] = 90.0  # equal ones: the first come first
        logits[:, 3] = torch.inf
        logits[:, 10:40] = -torch.inf
    values, ids = top_k(logits, k)
    order = torch.sort(logits, dim=1, descending=True, stable=True)
    assert torch.equal(values, order.values[:, :k])
    assert torch.equal(ids.long(), order.indices[:, :k])


def test_top_k_of_equal_rows_is_the_first_places(device: str) -> None:
    values, ids = top_k(torch.full((2, 3000), -torch.inf, device=device), 20)
    assert torch.equal(ids, torch.arange(20, dtype=torch.int32, device=device).expand(2, 20))
    assert bool((values == -torch.inf).all())
