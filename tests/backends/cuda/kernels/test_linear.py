from __future__ import annotations

import pytest
import torch

from cellmd.backends.cuda.kernels.layout import n_pieces, pack_int4, unpack_int4
from cellmd.backends.cuda.kernels.linear import Residual, alike, fits_one_step, geglu, linear, open_linear
from kernel_numbers import BF16, gelu, matrix, product_bound, rms_norm

pytestmark = pytest.mark.reference

EPS = 1e-6

SHAPES = [
    # rows, columns, outputs, bits, group
    (1, 256, 40, 4, 128),
    (1, 200, 19, 4, 32),
    (3, 300, 17, 4, 64),
    (9, 640, 48, 4, 128),
    (33, 130, 16, 4, 256),
    (1, 2300, 20, 4, 128),
    (1, 300, 18, 8, 0),
    (5, 256, 33, 8, 32),
    (1, 1, 1, 4, 0),
]


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (3, 127), (2, 128), (5, 129), (4, 1000)])
def test_packing_is_undone(device: str, n_rows: int, n_columns: int) -> None:
    values = torch.randint(-8, 8, (n_rows, n_columns), dtype=torch.int8, device=device)
    codes = pack_int4(values)
    assert codes.shape == (n_rows, 64 * n_pieces(n_columns))
    assert torch.equal(unpack_int4(codes, n_columns), values)


def test_byte_holds_two_columns() -> None:
    values = torch.arange(128, dtype=torch.int8).remainder(16)[None] - 8
    pieces = pack_int4(values).view(torch.int8)
    assert torch.equal((pieces << 4) >> 4, values[:, :64])
    assert torch.equal(pieces >> 4, values[:, 64:])


@pytest.mark.parametrize(("n_rows", "n_columns", "n_outputs", "bits", "group"), SHAPES)
def test_linear(device: str, n_rows: int, n_columns: int, n_outputs: int, bits: int, group: int) -> None:
    weights = matrix(device, n_outputs, n_columns, bits, group)
    x = torch.randn(n_rows, n_columns, device=device) * torch.logspace(-6, 6, n_columns, device=device)
    (y,) = linear(x, [weights])
    exact = weights.decoded(torch.float32).double()
    assert bool(((y - x.double() @ exact.T).abs() <= product_bound(x.double(), exact)).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_several_matrices_in_one_launch_are_the_same_bits(device: str, bits: int) -> None:
    matrices = [matrix(device, n, 256, bits, 32, torch.float32) for n in (33, 16, 7)]
    assert alike(matrices)
    x = torch.randn(4, 256, device=device)
    for y, weights in zip(linear(x, matrices), matrices, strict=True):
        assert torch.equal(y, linear(x, [weights])[0])


def test_blocks_of_rows_are_slices(device: str) -> None:
    whole = matrix(device, 64, 200, 4, 64)
    x = torch.randn(2, 200, device=device)
    assert torch.equal(linear(x, [whole.rows(16, 48)])[0], linear(x, [whole])[0][:, 16:48])


@pytest.mark.parametrize("n_rows", [2, 8, 11, 64])
def test_results_of_a_row_are_the_same_bits_in_any_company(device: str, n_rows: int) -> None:
    weights = matrix(device, 32, 384, 4, 128)
    x, others = torch.randn(2, n_rows, 384, device=device)
    others[-1] = x[0]
    assert torch.equal(linear(x, [weights])[0][0], linear(others * 1.0, [weights])[0][-1])


@pytest.mark.parametrize("n_columns", [640, 4224])
def test_number_of_rows_changes_a_result_by_rounding_to_float32_alone(device: str, n_columns: int) -> None:
    weights = matrix(device, 32, n_columns, 4, 128)
    x = torch.randn(64, n_columns, device=device)
    bound = 2.0**-20 * (x[:1].abs() @ weights.decoded(torch.float32).abs().T)
    whole = linear(x, [weights])[0][:1]
    for n_rows in (1, 3, 16, 33):
        assert bool(((linear(x[:n_rows].contiguous(), [weights])[0][:1] - whole).abs() <= bound).all())


@pytest.mark.parametrize("n_rows", [1, 3, 33])
@pytest.mark.parametrize("n_columns", [200, 2048, 6144])
def test_a_product_in_parts(device: str, n_rows: int, n_columns: int) -> None:
    weights = matrix(device, 48, n_columns, 4, 128)
    x = torch.randn(n_rows, n_columns, device=device)
    parts = open_linear(x, weights)
    assert parts.shape[1:] == (n_rows, 48)
    bound = 2.0**-20 * (x.abs() @ weights.decoded(torch.float32).abs().T)
    assert bool(((parts.sum(0) - linear(x, [weights])[0]).abs() <= bound).all())
    assert bool((parts.abs().amax(2) > 0).all())


@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n_columns", [128, 200, 1536])
def test_norm_and_residual_in_front(device: str, bits: int, n_columns: int, n_parts: int) -> None:
    matrices = [matrix(device, n, n_columns, bits, 64) for n in (20, 16)]
    x = torch.randn(1, n_columns, device=device) * 30
    weight, y_weight = torch.randn(2, n_columns, device=device)
    parts = torch.randn(n_parts, 1, n_columns, device=device)
    y = parts.double().sum(0)
    residual = Residual(parts, y_weight, torch.full_like(x, torch.nan), 0.75)
    products = linear(x, matrices, norm_weight=weight, residual=residual, eps=EPS)
    closed = (x.double() + rms_norm(y, y_weight.double(), EPS)) * 0.75
    assert bool(((residual.out - closed).abs() <= 1e-6 * (closed.abs() + x.abs())).all())
    normed = rms_norm(closed, weight.double(), EPS)
    for product, weights in zip(products, matrices, strict=True):
        exact = weights.decoded(torch.float32).double()
        assert bool(((product - normed @ exact.T).abs() <= product_bound(normed, exact)).all())


def test_norm_of_zeros_is_zero(device: str) -> None:
    x = torch.zeros(1, 200, device=device)
    (y,) = linear(x, [matrix(device, 16, 200, 4, 32)], norm_weight=torch.ones(200, device=device), eps=EPS)
    assert not bool(y.any())


@pytest.mark.parametrize("n_rows", [1, 5])
def test_softcap(device: str, n_rows: int) -> None:
    weights = matrix(device, 30, 200, 4, 128)
    x = torch.randn(n_rows, 200, device=device) * 100
    (y,) = linear(x, [weights], cap=30.0)
    exact = weights.decoded(torch.float32).double()
    full = x.double() @ exact.T
    assert bool(((y - 30 * torch.tanh(full / 30)).abs() <= product_bound(x.double(), exact) + 1e-4).all())


@pytest.mark.parametrize(("n_rows", "n_columns", "n_outputs", "bits", "group"), SHAPES)
def test_geglu(device: str, n_rows: int, n_columns: int, n_outputs: int, bits: int, group: int) -> None:
    gate, up = (matrix(device, n_outputs, n_columns, bits, group) for _ in range(2))
    x = torch.randn(n_rows, n_columns, device=device)
    exact_gate, exact_up = (weights.decoded(torch.float32).double() for weights in (gate, up))
    full_gate, full_up = x.double() @ exact_gate.T, x.double() @ exact_up.T
    off_gate, off_up = product_bound(x.double(), exact_gate), product_bound(x.double(), exact_up)
    # gelu is steepest by 1.13, and |gelu(a)| <= |a|
    bound = 1.13 * off_gate * (full_up.abs() + off_up) + full_gate.abs() * off_up + 1e-5 * (1 + full_up.abs())
    y = geglu(x, gate, up)
    assert bool(((y - gelu(full_gate) * full_up).abs() <= bound).all())

    other = torch.randn(n_rows, 3 * n_outputs, device=device)[:, n_outputs : 2 * n_outputs]
    y = geglu(x, gate, other)
    bound = (1.13 * off_gate + 1e-5) * other.abs() + 1e-6
    assert bool(((y - gelu(full_gate) * other).abs() <= bound).all())


def test_results_may_be_bfloat16(device: str) -> None:
    weights = matrix(device, 16, 128, 4, 128)
    x = torch.randn(1, 128, device=device)
    (exact,), (y,) = linear(x, [weights]), linear(x, [weights], dtype=torch.bfloat16)
    assert y.dtype == torch.bfloat16
    assert bool(((y - exact).abs() <= BF16 * exact.abs()).all())
    (from_bf16,) = linear(x.bfloat16(), [weights])
    assert torch.equal(from_bf16, linear(x.bfloat16().float(), [weights])[0])


def test_what_cannot_share_a_launch(device: str) -> None:
    one = matrix(device, 16, 128, 4, 128)
    assert not alike([one, matrix(device, 16, 128, 8, 128)])
    assert not alike([one, matrix(device, 16, 128, 4, 32)])
    assert not alike([one, matrix(device, 16, 128, 4, 128, torch.float32)])
    assert not alike([one] * 4)
    assert not alike([matrix(device, 16, 128, 16, 0)])
    assert fits_one_step(8192)
    assert not fits_one_step(8193)
