"""Norms, activations, look-ups: close to exact for every kind of input, and the same bits on any number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cellmd.errors import ArgumentError, ContainerError
from cellmd.quant.decode import decode
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding, FilePlace, OpenFile
from naive_ops import EPS, packed, rms_norm

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps

SPREAD = np.float32(2.0) ** np.linspace(-126, 126, 4001)
WIDE = np.concatenate([SPREAD, -SPREAD, np.linspace(-120, 120, 20001), [0.0, -0.0, 3.4e38, -3.4e38]]).astype(np.float32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def off_by(got: np.ndarray, want: np.ndarray, smallest: float = 2.0**-126) -> float:
    """The largest error in roundings of the wanted number itself; numbers below `smallest` count as that."""
    return float(np.max(np.abs(got - want) / (EPS / 2 * np.maximum(np.abs(want), smallest))))


def test_sigmoid_and_what_is_made_of_it(ops: CpuOps) -> None:
    x = WIDE.astype(np.float64)
    with np.errstate(over="ignore"):
        logistic = 1 / (1 + np.exp(-x))
    got = ops.to_numpy(ops.silu(ops.floats(WIDE[None])))[0]
    assert np.isfinite(got).all()
    assert off_by(got, x * logistic, 2.0**-100) <= 8
    pair = ops.floats(np.concatenate([np.ones_like(WIDE), WIDE])[None])
    assert off_by(ops.to_numpy(ops.glu(pair))[0], logistic, 2.0**-100) <= 8


def test_tanh(ops: CpuOps) -> None:
    for cap in (1.0, 30.0, 50.0):
        got = ops.to_numpy(ops.softcap_(ops.floats(WIDE[None]), cap))[0]
        assert off_by(got, cap * np.tanh(WIDE.astype(np.float64) / cap), 2.0**-100) <= 8
        assert np.array_equal(np.signbit(got), np.signbit(WIDE))


def test_gelu(ops: CpuOps) -> None:
    """As good as 0.5 x (1 + tanh u) in float32 where that is good, and better where it cancels."""
    x = WIDE[np.abs(WIDE) < 1e12]
    got = ops.to_numpy(ops.geglu(ops.floats(x[None]), ops.floats(np.ones_like(x)[None])))[0]
    y = x.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
    with np.errstate(over="ignore"):
        want = y / (1 + np.exp(-2 * u))  # 1 + tanh u, without its cancellation
    assert np.all(np.abs(got - want) <= EPS * (4 + 4 * np.minimum(np.abs(u), 44)) * np.maximum(np.abs(want), 2.0**-100))
    huge = np.array([[1e30, -1e30, 3.4e38, -3.4e38]], np.float32)
    assert np.array_equal(
        ops.to_numpy(ops.geglu(ops.floats(huge), ops.floats(np.ones_like(huge)))), np.maximum(huge, 0)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(ops: CpuOps, value: float) -> None:
    x = normal(1, 2, 40)
    x[1, 17] = value
    for op in (lambda t: ops.rms_norm(t, None, 1e-6), lambda t: ops.clamp(t, -np.inf, np.inf)):
        assert not np.isfinite(ops.to_numpy(op(ops.floats(x)))[1, 17])
    if np.isnan(value):
        ones = ops.floats(np.ones_like(x))
        for op in (ops.silu, ops.relu, lambda t: ops.geglu(t, ones), lambda t: ops.softcap_(t, 30.0)):
            assert np.isnan(ops.to_numpy(op(ops.floats(x)))[1, 17])


@pytest.mark.parametrize("width", [1, 15, 16, 17, 1536])
@pytest.mark.parametrize("magnitude", [1e-18, 1.0, 1e17])
def test_norms(ops: CpuOps, width: int, magnitude: float) -> None:
    x, weight = normal(1, 3, width) * np.float32(magnitude), normal(2, width)
    got = ops.to_numpy(ops.rms_norm(ops.floats(x), ops.floats(weight), 1e-6))
    assert off_by(got, rms_norm(x.astype(np.float64), weight, 1e-6), 1e-30) <= 12
    got = ops.to_numpy(ops.layer_norm(ops.floats(x), ops.floats(weight), 1e-6))
    y = x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64)
    want = y / np.sqrt((y**2).mean(axis=1, keepdims=True) + 1e-6) * weight
    # the mean is rounded: relative to the numbers, not to what is left of them
    slack = np.abs(x).max() / np.sqrt((y**2).mean(axis=1, keepdims=True) + 1e-6) * np.abs(weight)
    assert np.all(np.abs(got - want) <= 12 * EPS * (np.abs(want) + slack))


def test_bits_do_not_depend_on_threads_or_company(make: Callable[..., CpuOps]) -> None:
    x, y, weight = normal(1, 70, 600), normal(2, 70, 600), normal(3, 600)

    def results(ops: CpuOps, rows: slice) -> list[np.ndarray]:
        a, b, w = ops.floats(x[rows]), ops.floats(y[rows]), ops.floats(weight)
        n = a.shape[0]
        table = ops.rope_table(ops.ints(range(rows.start, rows.stop)), 1e4, 40, 100)
        heads = ops.reshape(a, (n, 6, 100))
        head_weight = ops.floats(weight[:100])
        outcomes = [
            ops.rms_norm(a, w, 1e-6),
            ops.layer_norm(a, w, 1e-6),
            ops.add_norm_(ops.keep(a), b, w, 1e-6, 0.5),
            ops.add_(ops.keep(a), b, 0.25),
            ops.affine(a, w, 0.5),
            ops.clamp(a, -1.0, 1.0),
            ops.geglu(a, b),
            ops.silu(a),
            ops.glu(a),
            ops.softcap_(ops.keep(a), 3.0),
            table,
            ops.rope(heads, table),
            ops.norm_rope(heads, head_weight, 1e-6, table),
        ]
        return [ops.to_numpy(z) for z in outcomes]

    want = results(make(1), slice(0, 70))
    for threads in (2, 3):
        assert all(np.array_equal(a, b) for a, b in zip(want, results(make(threads), slice(0, 70)), strict=True))
    ops = make(2)
    for row in (0, 33, 69):
        alone = results(ops, slice(row, row + 1))
        assert all(np.array_equal(a[row], b[0]) for a, b in zip(want, alone, strict=True))


@pytest.mark.parametrize("width", [16, 40, 300])
@pytest.mark.parametrize(
    "coding",
    [
        Coding("i4", "row", 32, "i8"),
        Coding("i4", "row", 0, "f16"),
        Coding("i4", "tile16", 64, "f16"),
        Coding("i8", "tile16", 32, "bf16"),
        Coding("i8", "row", 0, "f32"),
        Coding("bf16"),
        Coding("f16"),
    ],
    ids=str,
)
def test_look_ups_are_exact(ops: CpuOps, coding: Coding, width: int) -> None:
    stored = encode("t", normal(1, 37, width), coding)
    values, ids = decode(stored), [36, 0, 17, 17, 5]
    table = ops.table(stored)
    assert np.array_equal(ops.to_numpy(ops.embed(table, ops.ints(ids), 1.7)), values[ids] * np.float32(1.7))
    last = width // 16 * 16
    assert np.array_equal(ops.to_numpy(ops.embed(table, ops.ints(ids), 1.0, last)), values[ids, last:])
    upper = ops.rows_of(ops.matrix(stored), 16, 37)
    assert np.array_equal(ops.to_numpy(ops.embed(upper, ops.ints([0, 20]), 1.0)), values[[16, 36]])


@pytest.mark.parametrize(
    "coding", [Coding("i4", "row", 32, "i8"), Coding("i8", "row", 0, "f32"), Coding("f16")], ids=str
)
def test_a_table_in_a_file_is_looked_up_by_reading(ops: CpuOps, coding: Coding, tmp_path: Path) -> None:
    stored = encode("t", normal(1, 300, 40), coding)
    path, before = tmp_path / "f", 123
    path.write_bytes(bytes(before) + stored.data.tobytes())
    with path.open("rb") as file:
        place = FilePlace(OpenFile(file.fileno()), before)
    elsewhere = replace(stored, data=np.zeros_like(stored.data), place=place)  # what is not in the file is not read
    table, ids = ops.table(elsewhere), [299, 0, 17, 17] * 20
    assert np.array_equal(ops.to_numpy(ops.embed(table, ops.ints(ids), 1.0, 16)), decode(stored)[ids, 16:])
    upper = ops.rows_of(table, 16, 300)
    assert np.array_equal(ops.to_numpy(ops.embed(upper, ops.ints([0, 283]), 1.0)), decode(stored)[[16, 299]])

    os.truncate(path, before + stored.data.nbytes // 2)
    assert ops.to_numpy(ops.embed(table, ops.ints([3]), 1.0)).any()
    with pytest.raises(ContainerError, match="shorter"):
        ops.embed(table, ops.ints(ids), 1.0)


def test_a_table_in_a_file_lies_in_rows(ops: CpuOps, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with (tmp_path / "f").open("rb") as file:
        place = FilePlace(OpenFile(file.fileno()), 0)
    with pytest.raises(ArgumentError, match="rows"):
        ops.table(replace(encode("t", normal(1, 32, 40), Coding("i4", "tile16", 32, "f16")), place=place))


def test_rope_table_far_out(ops: CpuOps) -> None:
    positions = np.array([0, 1, 131_071, 2**31 - 1])
    got = ops.to_numpy(ops.rope_table(ops.ints(positions), 1e6, 128, 512))
    exponents = np.arange(0, 128, 2, dtype=np.float32) / np.float32(512)
    frequencies = np.float32(1) / np.power(1e6, exponents.astype(np.float64)).astype(np.float32)
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    assert np.abs(got - np.stack([np.cos(angles), np.sin(angles)], axis=1)).max() <= EPS / 2


def test_convolution_and_pooling_bits_do_not_depend_on_threads(make: Callable[..., CpuOps]) -> None:
    x, kernel = normal(1, 61, 40, 24), normal(2, 32, 24, 3, 3)
    rows, taps = normal(3, 81, 130), normal(4, 130, 5)

    def results(ops: CpuOps) -> list[np.ndarray]:
        return [
            ops.to_numpy(ops.conv2d(ops.floats(x), ops.array(packed(kernel)))),
            ops.to_numpy(ops.depthwise_conv1d(ops.floats(rows), ops.array(packed(taps)))),
            ops.to_numpy(ops.pool_patches(ops.floats(rows), 9, 3)),
        ]

    want = results(make(1))
    for threads in (2, 3):
        assert all(np.array_equal(a, b) for a, b in zip(want, results(make(threads)), strict=True))
