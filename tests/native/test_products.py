"""Products with quantised and float matrices: exact where they are promised to be, else as good as a plain form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cellmd.quant.decode import codes_of, decode, scales_of
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding, PackedTensor
from naive_ops import EPS, packed

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps

CODINGS = [
    Coding("i4", "tile16", 0, "f16"),
    Coding("i4", "tile16", 32, "bf16"),
    Coding("i4", "tile16", 64, "f32"),
    Coding("i4", "tile16", 128, "i8"),
    Coding("i4", "tile16", 256, "f16"),
    Coding("i8", "tile16", 0, "f32"),
    Coding("i8", "tile16", 32, "i8"),
    Coding("i4", "row", 0, "f16"),
    Coding("i4", "row", 32, "f32"),
    Coding("i4", "row", 256, "i8"),
    Coding("i8", "row", 0, "bf16"),
    Coding("i8", "row", 32, "f16"),
]
by_coding = pytest.mark.parametrize(
    "coding", CODINGS, ids=lambda c: f"{c.dtype}-{c.layout}-{c.group_size}-{c.scale_dtype}"
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def activation_codes(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, K) and their scales (N, G), in float32 as the kernels compute them."""
    codes, scales = np.zeros(x.shape), []
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group]
        largest = np.abs(part).max(axis=1)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest >= 1e-30)
        codes[:, start : start + group] = np.rint(part * inverse[:, None])
        scales.append(np.where(largest >= 1e-30, largest * (np.float32(1) / np.float32(127)), np.float32(0)))
    return codes, np.stack(scales, axis=1)


def plain_and_exact(x: np.ndarray, stored: PackedTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A plain float32 form of the product, the exact one, and the size of what is added up."""
    coding, (m, k) = stored.coding, stored.shape
    group = coding.group_size or 128
    codes, scales = activation_codes(x, group)
    weights, weight_scales = (
        f(stored, slice(0, m)).astype(t) for f, t in ((codes_of, np.float64), (scales_of, np.float32))
    )
    plain, exact, size = np.zeros((len(x), m), np.float32), np.zeros((len(x), m)), np.zeros((len(x), m))
    for g, start in enumerate(range(0, k, group)):
        part = slice(start, start + group)
        dot = codes[:, part] @ weights[:, part].T
        of_row = weight_scales[:, g if coding.group_size else 0]
        scale = scales[:, g, None] * of_row[None]
        plain += dot.astype(np.float32) * scale
        term = dot * scales[:, g, None].astype(np.float64) * of_row[None].astype(np.float64)
        exact += term
        size += np.abs(term)
    return plain, exact, size


def check(ops: CpuOps, x: np.ndarray, stored: PackedTensor) -> None:
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored)))
    plain, exact, size = plain_and_exact(x, stored)
    assert np.isfinite(got).all()
    assert np.abs(got - exact).max() <= 2 * np.abs(plain - exact).max() + 2 * EPS * size.max()


@by_coding
@pytest.mark.parametrize(("n", "k", "m"), [(1, 8, 16), (1, 1024, 33), (3, 40, 7), (9, 264, 48), (17, 392, 100)])
def test_product(ops: CpuOps, coding: Coding, n: int, k: int, m: int) -> None:
    check(ops, normal(n, n, k), encode("w", normal(m, m, k), coding))


@pytest.mark.parametrize("k", [1, 3, 7, 13, 100, 129])
@by_coding
def test_odd_widths(ops: CpuOps, coding: Coding, k: int) -> None:
    check(ops, normal(1, 5, k), encode("w", normal(2, 19, k), coding))


def from_codes(codes: np.ndarray, coding: Coding, scale: float) -> PackedTensor:
    """A stored tensor of exactly these codes and one scale everywhere."""
    stored = encode("w", codes.astype(np.float32), coding)
    from cellmd.quant.layouts import pack

    scales = np.full_like(stored.scales, scale)
    return replace(stored, data=pack(codes.astype(np.int8), coding.dtype, coding.layout), scales=scales)


@pytest.mark.parametrize("layout", ["tile16", "row"])
@pytest.mark.parametrize(("dtype", "lowest", "highest"), [("i4", -8, 7), ("i8", -128, 127)])
def test_extreme_codes(ops: CpuOps, layout: str, dtype: str, lowest: int, highest: int) -> None:
    """Every product of the largest numbers, of both signs: nothing saturates, nothing wraps."""
    k = 512
    signs = np.where(np.arange(k) % 3 == 0, -1.0, 1.0).astype(np.float32)
    x = np.stack([signs, -signs, np.ones(k, np.float32), -np.ones(k, np.float32)])
    codes = np.stack(
        [np.full(k, lowest), np.full(k, highest), np.where(signs > 0, highest, lowest), np.arange(k) % 2 * lowest]
    )
    stored = from_codes(np.tile(codes, (5, 1)), Coding(dtype, layout, 256, "f32"), 1.0)
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored)))
    want = x.astype(np.float64) @ np.tile(codes, (5, 1)).T
    # 127 * float32(1 / 127) is 1 but for one rounding
    assert np.abs(got - want).max() <= 4 * EPS * np.abs(want).max()


@by_coding
def test_zero_scales_and_zero_inputs_give_zero(ops: CpuOps, coding: Coding) -> None:
    stored = encode("w", normal(1, 20, 72), coding)
    nothing = replace(stored, scales=np.zeros_like(stored.scales))
    assert not ops.to_numpy(ops.linear(ops.floats(normal(2, 3, 72)), ops.matrix(nothing))).any()
    assert not ops.to_numpy(ops.linear(ops.zeros((3, 72)), ops.matrix(stored))).any()


@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-20, 1e20, 1e37])
@by_coding
def test_extreme_inputs_stay_finite(ops: CpuOps, coding: Coding, magnitude: float) -> None:
    stored = encode("w", normal(1, 20, 72) * np.float32(1e-3), coding)
    x = (normal(2, 3, 72).astype(np.float64).clip(-3, 3) * magnitude).astype(np.float32)
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored)))
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= np.abs(x).max() * 1.01 * np.abs(decode(stored)).sum(axis=1).max() + 1e-30


@by_coding
def test_what_is_not_finite_shows_in_its_own_row_alone(ops: CpuOps, coding: Coding) -> None:
    stored, x = encode("w", normal(1, 20, 160), coding), normal(2, 5, 160)
    clean = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored)))
    x[1, 3], x[3, 140] = np.nan, np.inf
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored)))
    assert np.isnan(got[[1, 3]]).all()
    assert np.array_equal(got[[0, 2, 4]], clean[[0, 2, 4]])


@by_coding
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_company_or_threads(make: Callable[..., CpuOps], coding: Coding, threads: int) -> None:
    stored, x = encode("w", normal(1, 116, 392), coding), normal(2, 37, 392)
    one = make(1)
    rows = one.matrix(stored)
    alone = np.concatenate([one.to_numpy(one.linear(one.floats(row[None]), rows)) for row in x])
    ops = make(threads)
    matrix = ops.matrix(stored)
    for n in (37, 8, 9, 2):
        assert np.array_equal(ops.to_numpy(ops.linear(ops.floats(x[:n]), matrix)), alone[:n])
    parts = [
        ops.to_numpy(ops.linear(ops.floats(x), ops.rows_of(matrix, a, b))) for a, b in ((0, 48), (48, 64), (64, 116))
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), alone)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (1, 700, 5), (7, 33, 9), (70, 100, 21)])
def test_float_weights(make: Callable[..., CpuOps], dtype: str, n: int, k: int, m: int) -> None:
    stored, x = encode("w", normal(1, m, k), Coding(dtype)), normal(2, n, k)
    values = decode(stored)
    plain = np.zeros((n, m), np.float32)
    for column in range(k):
        plain += x[:, column, None] * values[None, :, column]
    exact, size = x.astype(np.float64) @ values.T.astype(np.float64), np.abs(x) @ np.abs(values).T
    ops, one = make(2), make(1)
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored)))
    assert np.abs(got - exact).max() <= 2 * np.abs(plain - exact).max() + 2 * EPS * size.max()
    alone = [one.to_numpy(one.linear(one.floats(row[None]), one.matrix(stored))) for row in x]
    assert np.array_equal(got, np.concatenate(alone))


@by_coding
def test_clip_bias_and_odd_output_widths(ops: CpuOps, coding: Coding) -> None:
    stored, x, bias = encode("w", normal(1, 21, 136), coding), normal(2, 9, 136), normal(3, 21)
    clip = (-0.75, 0.5, -4.0, 3.5)
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(stored, clip=clip, bias=packed(bias))))
    plain, exact, size = plain_and_exact(np.clip(x, -0.75, 0.5), stored)
    want = np.clip(exact + bias, -4.0, 3.5)
    assert np.abs(got - want).max() <= 2 * np.abs(plain - exact).max() + 4 * EPS * (size.max() + np.abs(bias).max())
    assert got.min() >= -4.0
    assert got.max() <= 3.5


def test_fused_forms_are_their_parts_bit_for_bit(ops: CpuOps) -> None:
    x, weight = ops.floats(normal(1, 11, 264)), ops.floats(normal(2, 264))
    codings = [
        Coding("i4", "tile16", 128, "i8"),
        Coding("i4", "tile16", 32, "f16"),
        Coding("i8", "row", 0, "f16"),
        Coding("f16"),
    ]
    matrices = [ops.matrix(encode("w", normal(3 + i, 48 + i, 264), coding)) for i, coding in enumerate(codings)]
    normed = ops.rms_norm(x, weight, 1e-6)
    want = [ops.to_numpy(ops.linear(normed, matrix)) for matrix in matrices]
    for got in (ops.linears(normed, matrices), ops.norm_linears(x, weight, 1e-6, matrices)):
        assert all(np.array_equal(ops.to_numpy(y), z) for y, z in zip(got, want, strict=True))


@pytest.mark.parametrize("n", [1, 2, 9, 30])
@pytest.mark.parametrize("coding", [*CODINGS[:5], CODINGS[6], CODINGS[7]], ids=str)
def test_gated_product_is_its_parts_bit_for_bit(make: Callable[..., CpuOps], coding: Coding, n: int) -> None:
    x, weight = normal(1, n, 264), normal(2, 264)
    gate, up = (encode("w", normal(seed, 72, 264), coding) for seed in (3, 4))
    for threads in (1, 2):
        ops = make(threads)
        matrices = ops.matrix(gate), ops.matrix(up, clip=(-np.inf, np.inf, -1.0, 1.0))
        rows, of_norm = ops.floats(x), ops.floats(weight)
        want = ops.geglu(*ops.norm_linears(rows, of_norm, 1e-6, matrices))
        got = ops.norm_geglu(rows, of_norm, 1e-6, *matrices)
        assert np.array_equal(ops.to_numpy(got), ops.to_numpy(want))


def test_a_view_of_columns_is_multiplied(ops: CpuOps) -> None:
    x = normal(1, 5, 96)
    for coding in (Coding("i4", "tile16", 32, "f16"), Coding("i4", "row", 0, "f16"), Coding("f32")):
        matrix = ops.matrix(encode("w", normal(2, 20, 32), coding))
        want = ops.to_numpy(ops.linear(ops.floats(x[:, 32:64]), matrix))
        assert np.array_equal(ops.to_numpy(ops.linear(ops.columns(ops.floats(x), 32, 64), matrix)), want)


def test_no_rows_and_no_outputs(ops: CpuOps) -> None:
    matrix = ops.matrix(encode("w", normal(2, 20, 32), Coding("i4", "tile16", 32, "f16")))
    assert ops.to_numpy(ops.linear(ops.zeros((0, 32)), matrix)).shape == (0, 20)
    assert ops.to_numpy(ops.linear(ops.zeros((3, 32)), ops.rows_of(matrix, 16, 16))).shape == (3, 0)
