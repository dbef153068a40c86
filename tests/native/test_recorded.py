"""What few rows do is recorded the first time (`Ops.replay`): played again it gives what calling the function would."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cellmd.backends.ops import Ops, Tensor
from cellmd.errors import ArgumentError
from cellmd.quant.encode import encode
from cellmd.quant.tensor import Coding

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CpuOps

D, HD, F, V = 136, 24, 80, 40


class Key:
    pass


class Layer:
    """Something like a layer of a decoder: every operation that one is made of, on weights of its own."""

    def __init__(self, ops: CpuOps, seed: int = 0) -> None:
        self.ops = ops
        self._rng = np.random.default_rng(seed)
        self.table, self.head = self._matrix(V, D), self._matrix(V, D)
        self.projections = [self._matrix(4 * HD, D), self._matrix(HD, D), self._matrix(HD, D)]
        self.output, self.gate, self.up, self.down = (
            self._matrix(n, k) for n, k in ((D, 4 * HD), (F, D), (F, D), (D, F))
        )
        self.gate_in, self.projection = self._matrix(16, D), self._matrix(D, 16)
        self.norm, self.head_norm, self.wide_norm = (self._floats(n) for n in (D, HD, 32))
        self.looked_up = ops.table(encode("t", self._numbers(V, 64), Coding("i4", "row", 32, "f16")))
        self.wide = self._matrix(64, D)
        self.cache = ops.new_cache(4, 64, 1, HD)
        self.n_calls = 0

    def _numbers(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape, dtype=np.float32)

    def _floats(self, *shape: int) -> Tensor:
        return self.ops.floats(self._numbers(*shape))

    def _matrix(self, n: int, k: int) -> Any:
        return self.ops.matrix(encode("w", self._numbers(n, k), Coding("i4", "tile16", 32, "f16")))

    def __call__(self, ids: Tensor, positions: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        self.n_calls += 1
        ops, n = self.ops, ids.shape[0]
        ops.begin()
        x = ops.embed(self.table, ids, 2.0)
        turns = ops.rope_table(positions, 1e4, 16, HD)
        wide = (ops.linear(x, self.wide), 0.5, self.wide_norm, 1e-6, self.looked_up, ids, 2.0, 0, 0.7)
        own = ops.columns(ops.norm_add_embed(*wide), 32, 48)
        q, k, v = ops.norm_linears(x, self.norm, 1e-6, self.projections)
        q, k, v = (ops.reshape(each, (n, each.shape[1] // HD, HD)) for each in (q, k, v))
        ways = self.head_norm, 1e-6, turns, slots, positions, 7, self.output
        y = ops.attend_(self.cache, q, self.head_norm, [k, v], *ways, apart=True)
        y = ops.add_norm_norm_ffn_(x, y, self.norm, self.norm, 1e-6, self.gate, self.up, self.down)
        y = ops.add_norm_gated_linear_(x, y, self.norm, 1e-6, self.gate_in, own, self.projection)
        (more,) = ops.add_norm_norm_linears_(x, y, self.norm, 0.7, self.norm, 1e-6, [self.wide])
        ops.append_(self.cache, k, v, slots, positions)
        q = ops.norm_rope(q, self.head_norm, 1e-6, turns)
        seen = ops.reshape(ops.attention(q, self.cache, slots, positions, 0), (n, 4 * HD))
        x = ops.add_(x, ops.linear(ops.scale_(seen, 0.5), self.output))
        x = ops.add_norm_(x, ops.rms_norm(x, self.norm, 1e-6), self.norm, 1e-6)
        gated = ops.norm_geglu(x, self.norm, 1e-6, self.gate, self.up)
        gated = ops.geglu(gated, gated)
        logits = ops.norm_logits(x, self.norm, 1e-6, self.head, 30.0)
        return logits, x, more, ops.softcap_(ops.linear(x, self.head), 20.0), gated


def rows(ops: CpuOps, n: int, position: int) -> tuple[Tensor, ...]:
    ids = [(7 * position + 3 * i) % V for i in range(n)]
    return ops.ints(ids), ops.ints([position + i for i in range(n)]), ops.ints([i % 4 for i in range(n)])


def taken(results: Sequence[Tensor]) -> list[np.ndarray]:
    return [np.array(x.numpy()) for x in results]


@pytest.mark.parametrize("n", [1, 3])
def test_the_same_bits_as_calling(make: Callable[..., CpuOps], n: int) -> None:
    called, played = Layer(make(1)), Layer(make(2))
    key = Key()
    for position in range(6):
        want = taken(called(*rows(called.ops, n, position)))
        got = taken(played.ops.replay(key, "layer", played, rows(played.ops, n, position)))
        assert all(np.array_equal(x, y) for x, y in zip(got, want, strict=True))
    assert played.n_calls == 1


def test_results_stay_while_it_is_played_again(ops: CpuOps) -> None:
    layer, key = Layer(ops), Key()
    first = ops.replay(key, "layer", layer, rows(ops, 1, 0))
    before = taken(first)
    second = ops.replay(key, "layer", layer, rows(ops, 1, 1))
    again = taken(second)
    ops.replay(key, "layer", layer, rows(ops, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(taken(first), before, strict=True))
    assert all(np.array_equal(x, y) for x, y in zip(taken(second), again, strict=True))


def test_playing_takes_no_more_memory(ops: CpuOps) -> None:
    layer, key = Layer(ops), Key()
    for position in range(4):
        ops.replay(key, "layer", layer, rows(ops, 1, position))
    held = ops._native.held_bytes
    for position in range(4, 12):
        ops.replay(key, "layer", layer, rows(ops, 1, position))
        assert ops._native.held_bytes == held


def test_one_result_and_other_names(ops: CpuOps) -> None:
    key, x = Key(), ops.floats([[1.0, 2.0]])
    for factor in (2.0, 3.0):
        for _ in range(2):
            y = ops.replay(key, f"times {factor}", partial(ops.scale_, factor=factor), (ops.keep(x),))
            assert ops.to_numpy(y).tolist() == [[factor, 2 * factor]]


def test_many_rows_are_called(ops: CpuOps) -> None:
    layer, key = Layer(ops), Key()
    for position in range(2):
        ops.replay(key, "layer", layer, rows(ops, 16, position))
    assert layer.n_calls == 2


@pytest.mark.parametrize("kind", ["made", "kept", "foreign result", "the same input twice"])
def test_what_cannot_be_recorded_is_called(ops: CpuOps, kind: str) -> None:
    """Numbers made on the host, say, or results that no operation gave, would not change with the inputs."""
    calls, mine = [], ops.floats([[5.0, 6.0]])

    def function(x: Tensor, y: Tensor) -> Tensor:
        calls.append(kind)
        if kind == "made":
            return ops.add_(x, ops.floats([[float(len(calls)), 0.0]]))
        if kind == "kept":
            return ops.add_(ops.keep(x), y)
        return mine if kind == "foreign result" else ops.add_(x, y)

    key = Key()
    for _ in range(3):
        x = ops.floats([[1.0, 2.0]])
        inputs = (x, x) if kind == "the same input twice" else (x, ops.floats([[1.0, 1.0]]))
        got = ops.to_numpy(ops.replay(key, "function", function, inputs))
    assert len(calls) == 3
    assert got.tolist() == {"made": [[4, 2]], "kept": [[2, 3]], "foreign result": [[5, 6]]}.get(kind, [[2, 4]])


def test_an_error_ends_the_recording(ops: CpuOps) -> None:
    key = Key()

    def fails(x: Tensor) -> Tensor:
        ops.scale_(x, 2.0)
        raise KeyError("mine")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            ops.replay(key, "fails", fails, (ops.floats([[1.0]]),))
    assert ops.to_numpy(ops.replay(key, "fails", lambda x: ops.scale_(x, 3.0), (ops.floats([[1.0]]),))).item() == 3.0


def test_errors_while_it_is_played(ops: CpuOps) -> None:
    layer, key = Layer(ops), Key()
    ops.replay(key, "layer", layer, rows(ops, 1, 0))
    ids, positions, slots = rows(ops, 1, 1)
    with pytest.raises(ArgumentError, match="ids"):
        ops.replay(key, "layer", layer, (ops.ints([V]), positions, slots))
    with pytest.raises(ArgumentError, match="slots"):
        ops.replay(key, "layer", layer, (ids, positions, ops.ints([4])))
    with pytest.raises(ArgumentError, match="another shape"):
        ops.replay(key, "layer", layer, (ids, ops.ints([1, 2]), slots))
    with pytest.raises(ArgumentError, match="2 inputs for 3"):
        ops.replay(key, "layer", layer, (ids, positions))
    ops.replay(key, "twice", partial(ops.scale_, factor=2.0), (ops.floats([1.0]),))
    with pytest.raises(ArgumentError, match="float32"):
        ops.replay(key, "twice", pytest.fail, (ops.ints([1]),))
    assert np.isfinite(ops.replay(key, "layer", layer, (ids, positions, slots))[0].numpy()).all()


def test_an_interrupt_ends_the_playing(ops: CpuOps) -> None:
    """Between two operations: not all of those that were recorded have been done."""
    key, n_steps = Key(), 4000
    matrix = ops.matrix(encode("w", np.ones((256, 256), np.float32), Coding("i4", "tile16", 32, "f16")))

    def count(x: Tensor, wide: Tensor) -> Tensor:
        for _ in range(n_steps):
            ops.affine(ops.linear(wide, matrix), 1.0, 0.0)
            ops.add_(x, one)
        return x

    def interrupted(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    one, wide = ops.floats([[1.0]]), ops.zeros((8, 256))
    assert ops.to_numpy(ops.replay(key, "count", count, (ops.floats([[0.0]]), wide))).item() == n_steps
    x = ops.floats([[0.0]])
    handler = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        with pytest.raises(KeyboardInterrupt):
            ops.replay(key, "count", count, (x, wide))
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert 0 < ops.to_numpy(x).item() < n_steps


def test_other_threads_run_while_it_is_played(ops: CpuOps) -> None:
    """Though none of the operations lets them."""
    key, n_turns, done = Key(), 0, threading.Event()

    def scaled(x: Tensor) -> Tensor:
        for _ in range(1000):
            x = ops.scale_(x, 1.0)
        return x

    def take_turns() -> None:
        nonlocal n_turns
        while not done.is_set():
            n_turns += 1
            time.sleep(0)  # the interpreter is free for a moment, and then not before this thread's next turn

    ops.replay(key, "scaled", scaled, (ops.floats([[1.0]]),))
    interval = sys.getswitchinterval()
    other = threading.Thread(target=take_turns)
    other.start()
    sys.setswitchinterval(1000.0)  # nobody has to let others run
    try:
        x = ops.floats([[1.0]])
        for _ in range(1000):
            before = n_turns
            ops.replay(key, "scaled", pytest.fail, (x,))
            if n_turns > before:
                break
        else:
            pytest.fail("no other thread came to run")
    finally:
        done.set()
        sys.setswitchinterval(interval)
        other.join()


def test_foreign_types_are_refused(ops: CpuOps) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        ops._native.record(lambda x: x, (3,))
    with pytest.raises((TypeError, RuntimeError)):
        ops._native.record(lambda x: 3, (ops.zeros((1, 1)),))
    assert ops.to_numpy(ops.scale_(ops.floats([1.0]), 2.0)).item() == 2.0


def test_other_threads_are_not_recorded(ops: CpuOps) -> None:
    key = Key()

    def function(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: ops.rms_norm(ops.zeros((2, 16)), None, 1e-6))
        thread.start()
        thread.join()
        return ops.rms_norm(x, None, 1e-6)

    ops.replay(key, "function", function, (ops.floats([[1.0, 2.0]]),))
    x = ops.floats([[3.0, -1.0]])
    want = ops.to_numpy(ops.rms_norm(x, None, 1e-6))
    assert np.array_equal(ops.to_numpy(ops.replay(key, "function", pytest.fail, (x,))), want)


def test_a_recording_within_another(ops: CpuOps) -> None:
    key = Key()

    def outer(x: Tensor) -> Tensor:
        return ops.scale_(ops.replay(key, "inner", lambda y: ops.scale_(y, 2.0), (x,)), 3.0)

    for value in (1.0, 5.0):
        assert ops.to_numpy(ops.replay(key, "outer", outer, (ops.floats([value]),))).item() == 6 * value


def test_recordings_and_what_they_hold_go_with_their_key(ops: CpuOps) -> None:
    layer, key = Layer(ops), Key()
    recorded = weakref.ref(layer)
    ops.replay(key, "layer", layer, rows(ops, 1, 0))
    n_kept = len(ops._tapes)
    del layer, key
    gc.collect()
    assert len(ops._tapes) == n_kept - 1
    assert recorded() is None


def test_reference_calls_the_function() -> None:
    """What `replay` means where a backend does not say otherwise."""
    assert Ops.replay(object(), object(), "sum", lambda x, y: x + y, (1, 2)) == 3  # type: ignore[arg-type]
