"""Whatever does not fit is refused before anything is read or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cellmd.backends.cpu import create
from cellmd.errors import ArgumentError, BackendError
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding, PackedTensor
from naive_ops import packed

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps


@pytest.fixture(scope="module")
def ops() -> CpuOps:
    """Checks are the same code for every instruction set."""
    return create(2)


def stored(m: int = 20, k: int = 40, coding: Coding | None = None) -> PackedTensor:
    values = np.random.default_rng(0).standard_normal((m, k), dtype=np.float32)
    return encode("w", values, coding or Coding("i4", "tile16", 32, "f16"))


def closed(ops: CpuOps, y: object, closing: object) -> object:
    gate, projection = ops.matrix(stored()), ops.matrix(stored(40, 20))
    return ops.add_norm_gated_linear_(ops.zeros((2, 40)), y, closing, 1e-6, gate, ops.zeros((2, 20)), projection)


def layer(ops: CpuOps, m_up: int, k_down: int) -> object:
    gate, up, down = (ops.matrix(stored(m, k)) for m, k in ((20, 40), (m_up, 40), (24, k_down)))
    x, weight = ops.zeros((2, 40)), ops.zeros((40,))
    return ops.add_norm_norm_ffn_(x, ops.zeros((2, 40)), weight, weight, 1e-6, gate, up, down)


def parts(ops: CpuOps, x: object, weight: object, ids: list[int]) -> object:
    return ops.norm_add_embed(x, 1.0, weight, 1e-6, ops.table(stored()), ops.ints(ids), 1.0, 0, 1.0)


CALLS: list[tuple[str, Callable[[CpuOps], object]]] = [
    ("inputs 41 for 40", lambda o: o.linear(o.zeros((2, 41)), o.matrix(stored()))),
    ("a vector as input", lambda o: o.linear(o.zeros((40,)), o.matrix(stored()))),
    ("indices as input", lambda o: o.linear(o.ints([1, 2]), o.matrix(stored()))),
    ("one matrix of several", lambda o: o.linears(o.zeros((2, 40)), [o.matrix(stored()), o.matrix(stored(20, 48))])),
    ("norm weight", lambda o: o.norm_linears(o.zeros((2, 40)), o.zeros((39,)), 1e-6, [o.matrix(stored())])),
    ("gate of another size", lambda o: layer(o, 16, 20)),
    ("inputs of the third matrix", lambda o: layer(o, 20, 16)),
    ("rows not at 16", lambda o: o.rows_of(o.matrix(stored()), 8, 20)),
    ("rows beyond", lambda o: o.rows_of(o.matrix(stored()), 0, 36)),
    ("rows backwards", lambda o: o.rows_of(o.matrix(stored()), 16, 0)),
    ("negative id", lambda o: o.embed(o.matrix(stored()), o.ints([3, -1]), 1.0)),
    ("id beyond", lambda o: o.embed(o.matrix(stored()), o.ints([20]), 1.0)),
    ("float ids", lambda o: o.embed(o.matrix(stored()), o.zeros((2,)), 1.0)),
    ("columns not at 16", lambda o: o.embed(o.matrix(stored()), o.ints([1]), 1.0, 8, 40)),
    ("columns beyond", lambda o: o.embed(o.matrix(stored()), o.ints([1]), 1.0, 0, 48)),
    ("take beyond", lambda o: o.take_rows(o.zeros((3, 4)), o.ints([3]))),
    ("take negative", lambda o: o.take_rows(o.zeros((3, 4)), o.ints([-1]))),
    ("put beyond", lambda o: o.put_rows_(o.zeros((3, 4)), o.ints([3]), o.zeros((1, 4)))),
    ("put other width", lambda o: o.put_rows_(o.zeros((3, 4)), o.ints([0]), o.zeros((1, 5)))),
    ("put too many", lambda o: o.put_rows_(o.zeros((3, 4)), o.ints([0]), o.zeros((2, 4)))),
    ("reshape to more", lambda o: o.reshape(o.zeros((3, 4)), (2, 7))),
    ("reshape to five", lambda o: o.reshape(o.zeros((3, 4)), (3, 4, 1, 1, 1))),
    ("reshape to negative", lambda o: o.reshape(o.zeros((3, 4)), (-3, -4))),
    ("reshape a view", lambda o: o.reshape(o.columns(o.zeros((3, 4)), 0, 2), (6,))),
    ("columns of a view beyond", lambda o: o.columns(o.zeros((3, 4)), 2, 5)),
    ("huge zeros", lambda o: o.zeros((1 << 40, 1 << 40))),
    ("rms_norm weight", lambda o: o.rms_norm(o.zeros((2, 8)), o.zeros((7,)), 1e-6)),
    ("layer_norm weight", lambda o: o.layer_norm(o.zeros((2, 8)), o.zeros((2, 8)), 1e-6)),
    ("closing rows", lambda o: closed(o, o.zeros((3, 40)), o.zeros((40,)))),
    ("closing width", lambda o: closed(o, o.zeros((2, 39)), o.zeros((40,)))),
    ("closing weight", lambda o: closed(o, o.zeros((2, 40)), o.zeros((39,)))),
    ("closing integers", lambda o: closed(o, o.zeros((2, 40)), o.ints([0] * 40))),
    ("parts of a row", lambda o: parts(o, o.zeros((2, 40)), o.zeros((16,)), [0, 1])),
    ("parts of no width", lambda o: parts(o, o.zeros((2, 40)), o.zeros((0,)), [0, 1])),
    ("parts of other rows", lambda o: parts(o, o.zeros((2, 40)), o.zeros((8,)), [0, 1, 2])),
    ("parts of a wider table", lambda o: parts(o, o.zeros((2, 48)), o.zeros((8,)), [0, 1])),
    ("add_norm shapes", lambda o: o.add_norm_(o.zeros((2, 8)), o.zeros((2, 7)), o.zeros((8,)), 1e-6)),
    ("add shapes", lambda o: o.add_(o.zeros((2, 8)), o.zeros((8, 2)))),
    ("add integers", lambda o: o.add_(o.ints([1]), o.ints([1]))),
    ("scale integers", lambda o: o.scale_(o.ints([1]), 2.0)),
    ("affine vector", lambda o: o.affine(o.zeros((2, 8)), o.zeros((7,)), 0.0)),
    ("geglu shapes", lambda o: o.geglu(o.zeros((2, 8)), o.zeros((2, 9)))),
    ("glu odd", lambda o: o.glu(o.zeros((2, 7)))),
    ("softcap 0", lambda o: o.softcap_(o.zeros((2, 7)), 0.0)),
    ("table of odd width", lambda o: o.rope_table(o.ints([0]), 1e4, 7, 8)),
    ("table wider than heads", lambda o: o.rope_table(o.ints([0]), 1e4, 16, 8)),
    ("negative position", lambda o: o.rope_table(o.ints([-1]), 1e4, 8, 8)),
    ("table stretched to nothing", lambda o: o.rope_table(o.ints([0]), 1e4, 8, 8, 0.0)),
    ("rope rows", lambda o: o.rope(o.zeros((3, 2, 8)), o.zeros((2, 2, 4)))),
    ("rope width", lambda o: o.rope(o.zeros((3, 2, 8)), o.zeros((3, 2, 5)))),
    ("rope_2d width", lambda o: o.rope_2d(o.zeros((3, 2, 8)), o.zeros((3, 2, 2)), o.zeros((3, 2, 3)))),
    ("kernel channels", lambda o: o.conv2d(o.zeros((4, 4, 2)), o.zeros((3, 1, 3, 3)))),
    ("kernel size", lambda o: o.conv2d(o.zeros((4, 4, 1)), o.zeros((3, 1, 5, 5)))),
    ("depthwise channels", lambda o: o.depthwise_conv1d(o.zeros((4, 8)), o.zeros((7, 5)))),
    ("grid", lambda o: o.pool_patches(o.zeros((12, 8)), 5, 2)),
    ("empty cache", lambda o: o.new_cache(0, 8, 1, 16)),
    ("endless cache", lambda o: o.new_cache(65536, 1 << 31, 4096, 65536)),
    (
        "bidirectional shapes",
        lambda o: o.attention_bidirectional(o.zeros((3, 2, 8)), o.zeros((4, 2, 8)), o.zeros((4, 2, 8))),
    ),
    (
        "relative keys",
        lambda o: o.attention_relative(*[o.zeros((3, 2, 8))] * 3, o.zeros((5, 2, 9)), past=2, future=0, cap=5.0),
    ),
    (
        "a past of nothing",
        lambda o: o.attention_relative(*[o.zeros((3, 2, 8))] * 3, o.zeros((5, 2, 8)), past=0, future=0, cap=5.0),
    ),
    ("integers beyond 32 bits", lambda o: o.ints([1 << 40])),
]


@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_what_does_not_fit_is_refused(ops: CpuOps, call: Callable[[CpuOps], object]) -> None:
    with pytest.raises(ArgumentError):
        call(ops)


@pytest.mark.parametrize(
    ("slots", "positions", "window"),
    [([1], [0], 0), ([-1], [0], 0), ([0], [-1], 0), ([0], [64], 0), ([0, 0], [0], 0), ([0], [0], -1), ([0], [64], 65)],
)
def test_attention_outside_its_cache(ops: CpuOps, slots: list[int], positions: list[int], window: int) -> None:
    cache = ops.new_cache(1, 64, 1, 16)
    with pytest.raises(ArgumentError):
        ops.attention(ops.zeros((1, 2, 16)), cache, ops.ints(slots), ops.ints(positions), window)


@pytest.mark.parametrize(("slots", "positions"), [([1], [0]), ([0], [-1]), ([0, 0], [0])])
def test_append_outside_its_cache(ops: CpuOps, slots: list[int], positions: list[int]) -> None:
    cache = ops.new_cache(1, 64, 1, 16)
    row = ops.zeros((1, 1, 16))
    with pytest.raises(ArgumentError):
        ops.append_(cache, row, row, ops.ints(slots), ops.ints(positions))


def test_heads_that_do_not_fit_the_cache(ops: CpuOps) -> None:
    cache, at = ops.new_cache(1, 64, 2, 16), ops.ints([0])
    for shape in ((1, 3, 16), (1, 2, 8)):
        with pytest.raises(ArgumentError):
            ops.attention(ops.zeros(shape), cache, at, at, 0)
        with pytest.raises(ArgumentError):
            ops.append_(cache, ops.zeros(shape), ops.zeros(shape), at, at)


@pytest.mark.parametrize(
    "broken",
    [
        lambda t: replace(t, data=t.data[:-1]),
        lambda t: replace(t, data=np.concatenate([t.data, t.data[:64]])),
        lambda t: replace(t, scales=t.scales[:-1]),
        lambda t: replace(t, scales=t.scales.view(np.uint8)),
        lambda t: replace(t, shape=(36, 40)),
        lambda t: replace(t, shape=(0, 40)),
        lambda t: replace(t, coding=Coding("i8", "tile16", 32, "f16")),
        lambda t: replace(t, coding=Coding("i4", "tile16", 64, "f16")),
        lambda t: replace(t, coding=Coding("i4", "tile16", 12, "f16")),
        lambda t: replace(t, coding=Coding("i4", "tile16", 32, "i8"), row_factors=np.ones(32, np.float32)),
        lambda t: replace(t, coding=Coding("f32", "tile16")),
    ],
)
def test_bytes_that_do_not_fit_their_shape(ops: CpuOps, broken: Callable[[PackedTensor], PackedTensor]) -> None:
    tensor = broken(stored())
    if tensor.scales is not None and tensor.scales.dtype == np.uint8 and tensor.coding.scale_dtype == "f16":
        ops.matrix(tensor)  # the same bytes by another name
        return
    with pytest.raises(ArgumentError):
        ops.matrix(tensor)


def test_row_factors_are_counted(ops: CpuOps) -> None:
    tensor = stored(20, 40, Coding("i4", "tile16", 32, "i8"))
    assert tensor.row_factors is not None
    for factors in (None, tensor.row_factors[:20]):
        with pytest.raises(ArgumentError):
            ops.matrix(replace(tensor, row_factors=factors))


def test_clip_and_bias_are_checked(ops: CpuOps) -> None:
    with pytest.raises(ArgumentError):
        ops.matrix(stored(), clip=(1.0, -1.0, 0.0, 1.0))
    with pytest.raises(ArgumentError):
        ops.matrix(stored(), clip=(float("nan"), 1.0, 0.0, 1.0))
    with pytest.raises(ArgumentError):
        ops.matrix(stored(), bias=packed(np.zeros(19)))


def test_foreign_types_are_refused(ops: CpuOps) -> None:
    matrix, array = ops.matrix(stored()), np.zeros((2, 40), np.float32)
    for call in (
        lambda: ops.linear(array, matrix),
        lambda: ops.linear(ops.zeros((2, 40)), None),
        lambda: ops.linears(ops.zeros((2, 40)), [matrix, None]),
        lambda: ops.rms_norm(None, None, 1e-6),
        lambda: ops.add_(ops.zeros((2,)), 1.0),
        lambda: ops.attention(ops.zeros((1, 1, 16)), None, ops.ints([0]), ops.ints([0]), 0),
    ):
        with pytest.raises(TypeError):
            call()


def test_unknown_instruction_sets_threads_and_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError):
        create(0)
    with pytest.raises(ArgumentError):
        create(1, "f64").new_cache(1, 8, 1, 16)  # type: ignore[arg-type]
    monkeypatch.setenv("CELLMD_ISA", "mmx")
    with pytest.raises(BackendError, match=r"'mmx'; this machine runs: .*scalar"):
        create(1)
