"""A row's result depends on nothing but its own sequence: not on chunks, company, or which other logits are wanted.

Native backends keep this bit for bit. The reference multiplies with BLAS, whose sums may be ordered differently for
another number of rows: in these random models that moves the worst row by up to about 3e-4 of its size (the median by
4e-6), where a wrong mask or a wrong place in a ring moves it by more than 1e-2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import model_cases
from cellmd.api import Model
from cellmd.backends import create, installed
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.models.decoder import Batch
from cellmd.models.gemma4 import Gemma4
from cellmd.runtime.batch import Part, Sequence
from cellmd.runtime.generate import Runner
from cellmd.runtime.kv_cache import KvCache
from transformers_model import row_errors

ROUNDING = 1e-3
MakeRunner = Callable[..., Runner]
EXACT = [name for name in installed() if name != "cuda"]
"""The GPU's products order their sums by the number of rows; tests/backends/cuda/test_on_gpu.py has its own bounds."""
short = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module", params=[("deep_shared", "float"), ("tiny", "aggressive")], ids="-".join)
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return Container.open(model_cases.build(tmp_path_factory.mktemp("model"), *request.param))


@pytest.fixture(scope="module", params=EXACT)
def runner(request: pytest.FixtureRequest, container: Container) -> MakeRunner:
    ops, config = create(request.param), ModelConfig.from_dict(container.config)
    model = Gemma4(ops, config, container.tensors)

    def make(chunk: int, n_slots: int = 1, context: int = 400) -> Runner:
        return Runner(model, KvCache(ops, config.text, n_slots=n_slots, context=context, chunk=chunk))

    return make


def ids(n: int, seed: int = 0) -> list[int]:
    return list(model_cases.text_prompt(n, seed).token_ids)


def alone(runner: MakeRunner, tokens: list[int]) -> np.ndarray:
    return runner(chunk=len(tokens)).all_logits(Sequence(0, tokens))


def assert_same(runner: Runner, got: np.ndarray, want: np.ndarray) -> None:
    if runner.model.ops.name == "reference":
        assert row_errors(got, want).max(initial=0.0) < ROUNDING
    else:
        assert np.array_equal(got, want)


@short
@given(chunks=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_chunks(runner: MakeRunner, chunks: list[int]) -> None:
    tokens = ids(sum(chunks))
    pieces = runner(chunk=max(chunks))
    sequence = Sequence(0, tokens)
    rows = [np.array(pieces.advance([Part(sequence, n, n)])) for n in chunks]
    assert_same(pieces, np.concatenate(rows), alone(runner, tokens))


def test_a_ring_that_wraps_many_times(runner: MakeRunner) -> None:
    tokens = ids(150)
    pieces = runner(chunk=4)
    assert_same(pieces, pieces.all_logits(Sequence(0, tokens)), alone(runner, tokens))


@short
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_company(runner: MakeRunner, lengths: list[int], seed: int) -> None:
    """Sequences that advance by random amounts in random company, some rows wanted and some not."""
    rng = np.random.default_rng(seed)
    together = runner(chunk=6, n_slots=len(lengths))
    running = [Sequence(slot, ids(n, seed=slot)) for slot, n in enumerate(lengths)]
    got: dict[tuple[int, int], np.ndarray] = {}
    while any(sequence.n_pending for sequence in running):
        parts, order = [], []
        pending = [sequence for sequence in running if sequence.n_pending]
        for place in rng.permutation(len(pending))[: rng.integers(1, len(pending) + 1)]:
            sequence = pending[place]
            n = int(rng.integers(1, min(6, sequence.n_pending) + 1))
            n_wanted = int(rng.integers(0, n + 1))
            parts.append(Part(sequence, n, n_wanted))
            order += [(sequence.slot, p) for p in range(sequence.n_done + n - n_wanted, sequence.n_done + n)]
        logits = together.advance(parts)
        assert (logits is None) == (not order)
        got.update(zip(order, [] if logits is None else np.array(logits), strict=True))
    want = {slot: alone(runner, running[slot].token_ids) for slot in {slot for slot, _ in got}}
    for (slot, position), row in got.items():
        assert_same(together, row[None], want[slot][position][None])


@short
@given(wanted=st.sets(st.integers(0, 29)))
def test_logits_of_any_rows(runner: MakeRunner, wanted: set[int]) -> None:
    """Rows that nobody asks for stop early; those that are asked for come out as if all were."""
    tokens, some = ids(30), runner(chunk=30)
    ops, rows = some.model.ops, sorted(wanted)
    batch = Batch(ops.ints(tokens), ops.ints(range(30)), ops.ints([0] * 30), 30, len(rows), ops.ints(rows))
    logits = some.model.forward(batch, some.cache.layers)
    if not rows:
        assert logits is None
    else:
        assert_same(some, ops.to_numpy(logits), alone(runner, tokens)[rows])


def test_rows_that_nobody_wants_stop_at_the_last_writing_layer(runner: MakeRunner) -> None:
    some, seen = runner(chunk=30), []
    sequence = Sequence(0, ids(30))
    some.advance([Part(sequence, 29, 0)], lambda name, x: seen.append((name, len(x))))
    layers = [name for name, _ in seen if name.startswith("layer.")]
    first_shared = some.model.config.text.first_shared_layer
    assert layers == [f"layer.{i}" for i in range(first_shared - 1)]
    seen.clear()
    some.advance([Part(sequence, 1, 1)], lambda name, x: seen.append((name, len(x))))
    assert len([name for name, _ in seen if name.startswith("layer.")]) == some.model.config.text.n_layers


def test_soft_tokens_in_chunks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A chunk may end within the soft tokens of a medium."""
    path = model_cases.build(tmp_path_factory.mktemp("media"), "tiny")
    for backend in EXACT:
        with Container.open(path) as container:
            model = Model(container, create(backend))
            prompt, chunked = model_cases.media_prompt(model), Runner(model._runner.model, model._runner.cache)
            want = model.logits(prompt)
            for n in (1, 5):
                sequence, _ = chunked.start(prompt, slot=0)
                rows = []
                while sequence.n_pending:
                    part = Part(sequence, min(n, sequence.n_pending), min(n, sequence.n_pending))
                    rows.append(np.array(chunked.advance([part])))
                assert_same(chunked, np.concatenate(rows), want)
