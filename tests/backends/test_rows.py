"""Operations on rows: lookup, norms, elementwise, rotary positions."""

from __future__ import annotations

import numpy as np
import pytest

from cellmd.backends.ops import Ops
from naive_ops import EPS, assert_close, gelu, packed, rms_norm, rope, sigmoid


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def test_host_data_round_trips(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 5)
    assert np.array_equal(ops.to_numpy(ops.floats(x)), x)
    assert ops.to_numpy(ops.floats([[1, 2], [3, 4.5]])).tolist() == [[1, 2], [3, 4.5]]
    assert ops.to_numpy(ops.ints(range(4))).tolist() == [0, 1, 2, 3]
    assert ops.to_numpy(ops.ints([])).shape == (0,)
    assert not ops.to_numpy(ops.zeros((2, 3))).any()


def test_what_is_kept_outlives_the_pass(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 4, 16)
    kept = ops.keep(ops.relu(ops.floats(x)))
    on_host = ops.to_numpy(ops.relu(ops.floats(x)))
    for _ in range(3):
        ops.begin()
        ops.relu(ops.floats(normal(rng, 4, 16)))
    assert np.array_equal(ops.to_numpy(kept), np.maximum(x, 0))
    assert np.array_equal(on_host, np.maximum(x, 0))


def test_array_keeps_its_shape(ops: Ops, rng: np.random.Generator) -> None:
    for shape in [(), (1,), (7,), (3, 2, 2, 2)]:
        values = rng.standard_normal(shape).astype(np.float32)
        assert np.array_equal(ops.to_numpy(ops.array(packed(values))), values)


@pytest.mark.parametrize("bind", ["table", "matrix"])
def test_embed_takes_columns_of_rows(ops: Ops, rng: np.random.Generator, bind: str) -> None:
    values = normal(rng, 40, 48)
    table = getattr(ops, bind)(packed(values))
    ids = [3, 39, 0, 3]
    got = ops.to_numpy(ops.embed(table, ops.ints(ids), 48**0.5))
    assert np.array_equal(got, values[ids] * np.float32(48**0.5))
    got = ops.to_numpy(ops.embed(table, ops.ints(ids), 1.0, 16, 48))
    assert np.array_equal(got, values[ids, 16:])


def test_take_and_put_rows(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 6, 2, 3)
    rows = [5, 0, 5]
    assert np.array_equal(ops.to_numpy(ops.take_rows(ops.floats(x), ops.ints(rows))), x[rows])
    ids = ops.take_rows(ops.ints([7, 8, 9]), ops.ints([2, 0]))
    assert ops.to_numpy(ids).tolist() == [9, 7]
    target = ops.zeros((6, 4))
    values = normal(rng, 2, 4)
    assert ops.put_rows_(target, ops.ints([4, 1]), ops.floats(values)) is target
    want = np.zeros((6, 4), np.float32)
    want[[4, 1]] = values
    assert np.array_equal(ops.to_numpy(target), want)


def test_reshape_shares_memory(ops: Ops) -> None:
    x = ops.zeros((4, 6))
    ops.add_(ops.reshape(x, (2, 12)), ops.floats(np.ones((2, 12))))
    assert ops.to_numpy(x).sum() == 24


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 16), (1, 1536)])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(ops: Ops, rng: np.random.Generator, shape: tuple[int, ...], weighted: bool) -> None:
    x, weight = normal(rng, *shape) * 3, normal(rng, shape[-1])
    bound = ops.array(packed(weight)) if weighted else None
    got = ops.to_numpy(ops.rms_norm(ops.floats(x), bound, 1e-6))
    want = rms_norm(x.astype(np.float64), weight if weighted else None, 1e-6)
    assert_close(got, want, np.abs(want))


def test_rms_norm_of_zeros_is_zero(ops: Ops) -> None:
    assert not ops.to_numpy(ops.rms_norm(ops.zeros((2, 8)), None, 1e-6)).any()


def test_layer_norm(ops: Ops, rng: np.random.Generator) -> None:
    x, weight = normal(rng, 5, 36) + 2, normal(rng, 36)
    got = ops.to_numpy(ops.layer_norm(ops.floats(x), ops.array(packed(weight)), 1e-5))
    y = x.astype(np.float64)
    centred = y - y.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight
    assert_close(got, want, np.abs(weight) * np.abs(y).max())


def test_add_norm_is_its_parts(ops: Ops, rng: np.random.Generator) -> None:
    x, y, weight = normal(rng, 4, 40), normal(rng, 4, 40), normal(rng, 40)
    for scale in (1.0, 0.7):
        target = ops.floats(x)
        result = ops.add_norm_(target, ops.floats(y), ops.array(packed(weight)), 1e-6, scale)
        want = (x + rms_norm(y.astype(np.float64), weight, 1e-6)) * scale
        assert_close(ops.to_numpy(target), want, np.abs(x) + np.abs(want))
        assert np.array_equal(ops.to_numpy(result), ops.to_numpy(target))


def test_in_place_arithmetic(ops: Ops, rng: np.random.Generator) -> None:
    x, y = normal(rng, 3, 20), normal(rng, 3, 20)
    target = ops.floats(x)
    assert np.array_equal(ops.to_numpy(ops.add_(target, ops.floats(y))), x + y)
    assert np.array_equal(ops.to_numpy(target), x + y)
    target = ops.floats(x)
    ops.add_(target, ops.floats(y), 0.5)
    assert np.array_equal(ops.to_numpy(target), x + y * np.float32(0.5))
    ops.scale_(target, 3.0)
    assert np.array_equal(ops.to_numpy(target), (x + y * np.float32(0.5)) * np.float32(3))


def test_affine_adds_before_it_multiplies(ops: Ops, rng: np.random.Generator) -> None:
    x, factor, offset = normal(rng, 4, 24), normal(rng, 24), normal(rng, 24)
    before = ops.floats(x)
    got = ops.to_numpy(ops.affine(before, 2.0, -0.5))
    assert np.array_equal(got, (x - np.float32(0.5)) * np.float32(2))
    got = ops.to_numpy(ops.affine(before, ops.array(packed(factor)), ops.array(packed(offset))))
    assert np.array_equal(got, (x + offset) * factor)
    assert np.array_equal(ops.to_numpy(before), x)


def test_clamp(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 4, 24)
    assert np.array_equal(ops.to_numpy(ops.clamp(ops.floats(x), -0.5, 0.25)), np.clip(x, -0.5, 0.25))
    assert np.array_equal(ops.to_numpy(ops.clamp(ops.floats(x), -np.inf, np.inf)), x)


WIDE = np.concatenate([np.linspace(-100, 100, 81), np.linspace(-3, 3, 79), [0.0, -0.0]]).astype(np.float32)[None]


def test_activations(ops: Ops) -> None:
    x, y = ops.floats(WIDE), WIDE.astype(np.float64)
    with np.errstate(over="ignore"):
        logistic = sigmoid(y)
    assert_close(ops.to_numpy(ops.silu(x)), y * logistic, np.abs(y) * logistic + 1e-30)
    assert np.array_equal(ops.to_numpy(ops.relu(x)), np.maximum(WIDE, 0))
    ones = ops.floats(np.ones_like(WIDE))
    # 1 + tanh cancels for negative x: the bound is absolute there
    assert_close(ops.to_numpy(ops.geglu(x, ones)), gelu(y), np.minimum(np.abs(y), 8))
    assert_close(ops.to_numpy(ops.softcap_(ops.floats(WIDE), 30.0)), 30 * np.tanh(y / 30), np.minimum(np.abs(y), 30))


def test_geglu_takes_a_view_of_columns(ops: Ops, rng: np.random.Generator) -> None:
    gate, wide = normal(rng, 3, 16), normal(rng, 3, 64)
    got = ops.to_numpy(ops.geglu(ops.floats(gate), ops.columns(ops.floats(wide), 32, 48)))
    want = gelu(gate.astype(np.float64)) * wide[:, 32:48]
    assert_close(got, want, np.abs(gate * wide[:, 32:48]))


def test_glu(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 40)
    want = x[:, :20] * sigmoid(x[:, 20:].astype(np.float64))
    assert_close(ops.to_numpy(ops.glu(ops.floats(x))), want, np.abs(want))


POSITIONS = [0, 1, 2, 511, 4095, 131_071]


@pytest.mark.parametrize(
    ("base", "rotary_dim", "head_dim", "stretch"),
    [(1e4, 256, 256, 1.0), (1e6, 128, 512, 1.0), (100.0, 32, 32, 1.0), (1e6, 256, 256, 8.0), (1e4, 24, 24, 3.0)],
)
def test_rope_table(ops: Ops, base: float, rotary_dim: int, head_dim: int, stretch: float) -> None:
    got = ops.to_numpy(ops.rope_table(ops.ints(POSITIONS), base, rotary_dim, head_dim, stretch))
    exponents = (np.arange(0, rotary_dim, 2) / head_dim).astype(np.float32)
    frequencies = np.float32(1) / np.power(base, exponents.astype(np.float64)).astype(np.float32) / np.float32(stretch)
    angles = (np.array(POSITIONS, np.float32)[:, None] * frequencies).astype(np.float64)
    want = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # A power that another library rounds to the neighbouring float32 moves the angle by one rounding of itself.
    assert_close(got, want, 1 + np.abs(angles)[:, None], roundings=2)


@pytest.mark.parametrize(("rotary_dim", "head_dim"), [(16, 16), (4, 16), (0, 8), (20, 20)])
def test_rope_turns_pairs(ops: Ops, rng: np.random.Generator, rotary_dim: int, head_dim: int) -> None:
    x, angles = normal(rng, 4, 3, head_dim), rng.uniform(-9, 9, (4, rotary_dim // 2)).astype(np.float32)
    table = ops.floats(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    got = ops.to_numpy(ops.rope(ops.floats(x), table))
    assert_close(got, rope(x.astype(np.float64), angles.astype(np.float64)), 2 * np.abs(x).max())
    untouched = [i for i in range(head_dim) if i % (head_dim // 2) >= rotary_dim // 2]
    assert np.array_equal(got[:, :, untouched], x[:, :, untouched])


def test_norm_rope_is_its_parts(ops: Ops, rng: np.random.Generator) -> None:
    x, weight = normal(rng, 4, 3, 16), normal(rng, 16)
    angles = rng.uniform(-3, 3, (4, 4))
    table = ops.floats(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    got = ops.to_numpy(ops.norm_rope(ops.floats(x), ops.array(packed(weight)), 1e-6, table))
    want = rope(rms_norm(x.astype(np.float64), weight, 1e-6), angles)
    assert_close(got, want, 2 * np.abs(want).max())


def test_rope_2d_turns_each_half_as_a_head(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 5, 2, 24)
    columns, rows = rng.uniform(-3, 3, (2, 5, 6))
    table_x, table_y = (ops.floats(np.stack([np.cos(a), np.sin(a)], axis=1)) for a in (columns, rows))
    got = ops.to_numpy(ops.rope_2d(ops.floats(x), table_x, table_y))
    y = x.astype(np.float64)
    want = np.concatenate([rope(y[:, :, :12], columns), rope(y[:, :, 12:], rows)], axis=2)
    assert_close(got, want, 2 * np.abs(x).max())


def test_rope_keeps_lengths(ops: Ops, rng: np.random.Generator) -> None:
    x = normal(rng, 6, 2, 32)
    table = ops.rope_table(ops.ints(range(100, 106)), 1e4, 32, 32)
    got = ops.to_numpy(ops.rope(ops.floats(x), table))
    assert np.allclose(np.linalg.norm(got, axis=2), np.linalg.norm(x, axis=2), rtol=8 * EPS, atol=0)
