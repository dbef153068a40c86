"""Matrices: products, clips, biases, slices."""

from __future__ import annotations

import numpy as np
import pytest

from cellmd.backends.ops import Ops
from cellmd.quant.decode import decode
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding
from naive_ops import as_int8, assert_close, gelu, packed, rms_norm


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def product(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x W^T in float64, and the size of what is added up."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    return x @ w.T, np.abs(x) @ np.abs(w).T


@pytest.mark.parametrize(("n", "k", "m"), [(1, 8, 16), (1, 40, 52), (5, 36, 7), (33, 256, 64), (2, 1536, 300)])
def test_linear_of_float_weights(ops: Ops, rng: np.random.Generator, n: int, k: int, m: int) -> None:
    x, w = normal(rng, n, k), normal(rng, m, k)
    before = ops.floats(x)
    got = ops.to_numpy(ops.linear(before, ops.matrix(packed(w))))
    want, size = product(x, w)
    assert_close(got, want, size, roundings=k**0.5)
    assert np.array_equal(ops.to_numpy(before), x)


def test_clip_and_bias(ops: Ops, rng: np.random.Generator) -> None:
    x, w, bias = normal(rng, 4, 24) * 2, normal(rng, 18, 24), normal(rng, 18)
    clip = (-1.5, 1.25, -4.0, 3.0)
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(packed(w), clip=clip)))
    want, size = product(np.clip(x, -1.5, 1.25), w)
    assert_close(got, np.clip(want, -4, 3), size)
    assert got.max() == 3.0
    assert got.min() == -4.0
    got = ops.to_numpy(ops.linear(ops.floats(x), ops.matrix(packed(w), bias=packed(bias))))
    want, size = product(x, w)
    assert_close(got, want + bias, size + np.abs(bias))


def test_infinite_clip_is_none(ops: Ops, rng: np.random.Generator) -> None:
    x, w = ops.floats(normal(rng, 4, 24)), packed(normal(rng, 18, 24))
    unbounded = ops.matrix(w, clip=(-np.inf, np.inf, -np.inf, np.inf))
    assert np.array_equal(ops.to_numpy(ops.linear(x, unbounded)), ops.to_numpy(ops.linear(x, ops.matrix(w))))


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (16, 48), (32, 52), (0, 52)])
def test_rows_of_a_matrix(ops: Ops, rng: np.random.Generator, start: int, stop: int) -> None:
    x, w, bias = normal(rng, 3, 40), normal(rng, 52, 40), normal(rng, 52)
    part = ops.rows_of(ops.matrix(packed(w), bias=packed(bias)), start, stop)
    want, size = product(x, w)
    got = ops.to_numpy(ops.linear(ops.floats(x), part))
    assert_close(got, (want + bias)[:, start:stop], (size + 1)[:, start:stop])


def test_several_matrices_of_one_input(ops: Ops, rng: np.random.Generator) -> None:
    x, weight = normal(rng, 3, 40), normal(rng, 40)
    stored = [packed(normal(rng, m, 40)) for m in (16, 8, 52)]
    matrices = [ops.matrix(w) for w in stored]
    several = [ops.to_numpy(y) for y in ops.linears(ops.floats(x), matrices)]
    for y, matrix in zip(several, matrices, strict=True):
        assert np.array_equal(y, ops.to_numpy(ops.linear(ops.floats(x), matrix)))
    normed = [ops.to_numpy(y) for y in ops.norm_linears(ops.floats(x), ops.array(packed(weight)), 1e-6, matrices)]
    y = rms_norm(x.astype(np.float64), weight, 1e-6)
    for got, w in zip(normed, stored, strict=True):
        want, size = product(y, w.data.view(np.float32).reshape(w.shape))
        assert_close(got, want, size)


def test_gated_product_is_its_parts(ops: Ops, rng: np.random.Generator) -> None:
    x, weight = normal(rng, 3, 40), normal(rng, 40)
    gate, up = normal(rng, 52, 40) / 6, normal(rng, 52, 40)
    matrices = ops.matrix(packed(gate)), ops.matrix(packed(up))
    got = ops.to_numpy(ops.norm_geglu(ops.floats(x), ops.array(packed(weight)), 1e-6, *matrices))
    y = rms_norm(x.astype(np.float64), weight, 1e-6)
    (gated, size_of_gate), (value, size_of_value) = product(y, gate), product(y, up)
    # an error of the gate is at most doubled by gelu, and multiplied by the value beside it
    assert_close(got, gelu(gated) * value, (2 * size_of_gate + 1) * size_of_value)


CODINGS = [
    Coding("bf16"),
    Coding("f16"),
    Coding("i8", "row", 0, "f32"),
    Coding("i8", "tile16", 32, "f16"),
    Coding("i4", "row", 0, "f16"),
    Coding("i4", "row", 32, "bf16"),
    Coding("i4", "tile16", 0, "f16"),
    Coding("i4", "tile16", 32, "f16"),
    Coding("i4", "tile16", 128, "i8"),
]


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize(("m", "k"), [(48, 128), (52, 40), (7, 300)])
def test_every_coding(ops: Ops, rng: np.random.Generator, coding: Coding, m: int, k: int) -> None:
    """A stored matrix multiplies, and is looked up, as the numbers it decodes to."""
    stored, x = encode("w", normal(rng, m, k), coding), normal(rng, 5, k)
    values = decode(stored)
    matrix = ops.matrix(stored)
    taken = as_int8(x, coding.group_size or 128) if ops.name == "cpu" and coding.quantised else x
    want, size = product(taken, values)
    assert_close(ops.to_numpy(ops.linear(ops.floats(x), matrix)), want, size, roundings=k**0.5)
    want, size = product(taken, values[: m // 16 * 16])
    part = ops.to_numpy(ops.linear(ops.floats(x), ops.rows_of(matrix, 0, m // 16 * 16)))
    assert_close(part, want, size, roundings=k**0.5)
    ids = [m - 1, 0, 3, 3]
    for table in (matrix, ops.table(stored)):
        assert np.array_equal(ops.to_numpy(ops.embed(table, ops.ints(ids), 3.0)), values[ids] * np.float32(3))
        got = ops.to_numpy(ops.embed(table, ops.ints(ids), 1.0, 16, 32))
        assert np.array_equal(got, values[ids, 16:32])
