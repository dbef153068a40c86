"""The scheduler: company changes nothing, slots come free, what was computed is used again, queues are bounded."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellmd
import model_cases
from cellmd.errors import BusyError
from cellmd.processors.features import MediaSpan
from cellmd.runtime.fair_queue import FairQueue
from cellmd.runtime.result import Result
from cellmd.runtime.reuse import EncodedMedia, identity
from cellmd.runtime.scheduler import Scheduler
from live_server import until


@pytest.fixture
def scheduler(model: cellmd.Model) -> Iterator[Scheduler]:
    scheduler = model.scheduler(slots=3, queue_limit=8)
    yield scheduler
    scheduler.close()


def prompts(model: cellmd.Model) -> list[cellmd.Prompt]:
    """Short and long ones, with and without media."""
    texts = [model_cases.text_prompt(n, seed=n) for n in (2, 17, 90, 700)]
    return [*texts, model_cases.media_prompt(model, 1), model_cases.media_prompt(model, 2)]


def together(model: cellmd.Model, scheduler: Scheduler, asked: list[tuple[cellmd.Prompt, dict[str, Any]]]) -> list[Any]:
    """The answers of requests that are all made at once, each from a thread of its own."""
    results: list[Any] = [None] * len(asked)

    def answer(i: int) -> None:
        prompt, options = asked[i]
        try:
            results[i] = Result.of(list(scheduler.stream(model.request(prompt, **options))))
        except cellmd.CellmdError as error:
            results[i] = error

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.2, "top_k": 0, "top_p": 1.0}])
@pytest.mark.parametrize("slots", [3, 6])
def test_each_answer_is_what_it_would_be_alone(model: cellmd.Model, sampling: dict[str, Any], slots: int) -> None:
    if model.backend != "cpu":
        assert model.backend == "reference"  # float32 rounding of the platform's BLAS: nothing to hold bit for bit
        return
    asked = [(p, {**sampling, "seed": i, "max_tokens": 5 + 7 * i}) for i, p in enumerate(prompts(model))]
    alone = [model.generate(prompt, **options) for prompt, options in asked]
    scheduler = model.scheduler(slots=slots)
    try:
        for _ in range(2):  # the second time on slots that hold others' leavings, and prefixes to go on from
            for one, other in zip(alone, together(model, scheduler, asked), strict=True):
                assert one.token_ids == other.token_ids
                assert (one.text, one.reasoning, one.finish_reason) == (
                    other.text,
                    other.reasoning,
                    other.finish_reason,
                )
    finally:
        scheduler.close()
    assert scheduler.counts.cached_tokens > 0 or slots == 3


def test_a_long_prompt_does_not_hold_up_the_others(model: cellmd.Model, scheduler: Scheduler) -> None:
    """Answers that are being decoded get a token in every step while a prompt of many steps is read."""
    scheduler._step_seconds = 0.0
    tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 200}
    short = model.request(model_cases.text_prompt(5), **options)
    short.settings.end_ids = ()
    scheduler.submit(short, tokens.put)
    until(lambda: scheduler.counts.completion_tokens > 3)
    before = scheduler.counts.completion_tokens
    long = Result.of(
        list(scheduler.stream(model.request(model_cases.text_prompt(1200), **{**options, "max_tokens": 1})))
    )
    assert long.usage.prompt_tokens == 1200
    assert scheduler.counts.completion_tokens - before > 20


def test_a_cancelled_answer_frees_its_slot(model: cellmd.Model, scheduler: Scheduler) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1500}
    jobs = []
    for i in range(5):
        request = model.request(model_cases.text_prompt(5, seed=i), **options)
        request.settings.end_ids = ()
        jobs.append(scheduler.submit(request, lambda piece: None))
    until(lambda: scheduler.counts.running == 3)
    assert scheduler.counts.waiting == 2
    for job in jobs:
        job.cancel()
    steps = scheduler.counts.steps
    until(lambda: scheduler.counts.running == 0)
    assert scheduler.counts.steps - steps <= 2
    assert scheduler.counts.cancelled == 5
    assert scheduler.counts.waiting == 0


def test_a_closed_iterator_cancels(model: cellmd.Model, scheduler: Scheduler) -> None:
    request = model.request(model_cases.text_prompt(5), temperature=0.0, max_tokens=1500)
    request.settings.end_ids = ()
    pieces = scheduler.stream(request)
    next(pieces)
    pieces.close()
    until(lambda: scheduler.counts.running == 0)


def test_the_queue_is_bounded(model: cellmd.Model, scheduler: Scheduler) -> None:
    def ask() -> None:
        request = model.request(model_cases.text_prompt(5), temperature=0.0, max_tokens=1500)
        request.settings.end_ids = ()
        scheduler.submit(request, lambda piece: None)

    for _ in range(3 + 8):
        ask()
    with pytest.raises(BusyError, match="8 answers are waiting"):
        ask()
    assert scheduler.counts.refused == 1


def test_what_does_not_fit_is_refused_at_once(model: cellmd.Model, scheduler: Scheduler) -> None:
    with pytest.raises(cellmd.ContextLengthError):
        scheduler.submit(model.request(model_cases.text_prompt(2000), max_tokens=100), lambda piece: None)
    with pytest.raises(cellmd.PromptError):
        scheduler.submit(model.request(cellmd.Prompt(())), lambda piece: None)


def test_a_failing_answer_ends_alone(model: cellmd.Model, scheduler: Scheduler) -> None:
    class Broken:
        def choose(self, logits: object) -> int:
            raise RuntimeError("broken")

    good = model.request(model_cases.text_prompt(9), temperature=0.0, max_tokens=20)
    bad = model.request(model_cases.text_prompt(9), temperature=0.0, max_tokens=20)
    object.__setattr__(bad, "sampler", Broken())
    failed: queue.SimpleQueue[Any] = queue.SimpleQueue()
    scheduler.submit(bad, failed.put)
    assert Result.of(list(scheduler.stream(good))).usage.completion_tokens
    assert isinstance(failed.get(timeout=20), cellmd.BackendError)
    assert scheduler.counts.failed == 1


def test_conversations_go_on_from_what_is_there(model: cellmd.Model, scheduler: Scheduler) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}
    first = model_cases.media_prompt(model, 5)
    answer = Result.of(list(scheduler.stream(model.request(first, **options))))
    longer = cellmd.Prompt((*first.token_ids, *answer.token_ids, 120, 121), first.media)
    again = Result.of(list(scheduler.stream(model.request(longer, **options))))
    assert again.usage.cached_tokens >= len(first)
    assert again.timings.encoder_ms == {}
    other = cellmd.Prompt(first.token_ids, model_cases.media_prompt(model, 6).media)
    different = Result.of(list(scheduler.stream(model.request(other, **options))))
    assert different.usage.cached_tokens <= first.media[0].start


def test_what_is_asked_together_is_read_once(model: cellmd.Model) -> None:
    """A long beginning with media, four answers: copies from one that is being read, also once it is being decoded."""
    beginning = model_cases.media_prompt(model, 8)
    own = [cellmd.Prompt((*beginning.token_ids, *range(120, 140 + i)), beginning.media) for i in range(4)]
    asked = [(p, {"temperature": 0.9, "seed": i, "max_tokens": 30}) for i, p in enumerate([*own, own[0]])]
    alone = [model.generate(prompt, **options) for prompt, options in asked]
    scheduler = model.scheduler(slots=5)
    results = together(model, scheduler, asked)
    scheduler.close()
    cached = sorted(result.usage.cached_tokens for result in results)
    assert cached[0] == 0
    assert cached[1] >= len(beginning)
    assert sum(bool(result.timings.encoder_ms) for result in results) == 1
    assert scheduler.counts.rows < len(own[0]) + 5 * (len(own[3]) - len(beginning) + 30)
    if model.backend == "cpu":
        assert [result.token_ids for result in results] == [result.token_ids for result in alone]


@pytest.mark.parametrize("seed", range(3))
def test_any_company_that_comes_and_goes(model: cellmd.Model, seed: int) -> None:
    """Prompts that share beginnings of any length, some with media, answers that are cut off at any time."""
    rng = random.Random(seed)
    stems = [model_cases.media_prompt(model, seed), model_cases.text_prompt(700, seed)]
    asked: list[tuple[cellmd.Prompt, dict[str, Any]]] = []
    for i in range(30):
        stem = rng.choice(stems)
        ends = stem.media[-1].start + stem.media[-1].features.n_soft_tokens if stem.media else 20
        n = rng.randint(ends, len(stem))
        prompt = cellmd.Prompt((*stem.token_ids[:n], *rng.choices(range(110, 230), k=rng.randint(1, 40))), stem.media)
        asked.append((prompt, {"temperature": 1.0, "seed": i, "max_tokens": rng.randint(1, 60)}))
    alone = [model.generate(prompt, **options) for prompt, options in asked]
    scheduler = model.scheduler(slots=4, queue_limit=64)
    got: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in asked]
    left = set(rng.sample(range(len(asked)), 8))
    for i, (prompt, options) in enumerate(asked):
        job = scheduler.submit(model.request(prompt, **options), got[i].put)
        if i in left:
            threading.Timer(rng.random() * 0.2, job.cancel).start()
        threading.Event().wait(rng.random() * 0.01)
    scheduler.close(drain_seconds=60)
    assert scheduler.counts.failed == 0
    assert scheduler.counts.cached_tokens > 0
    for i, one in enumerate(alone):
        pieces = [got[i].get_nowait() for _ in range(got[i].qsize())]
        tokens = tuple(token for piece in pieces for token in piece.token_ids)
        if model.backend == "cpu":
            assert tokens == one.token_ids[: len(tokens)]
            assert i in left or tokens == one.token_ids
        assert i in left or pieces[-1].finish_reason is not None


def test_who_waits_for_one_that_leaves_goes_on_alone(model: cellmd.Model) -> None:
    prompt = model_cases.text_prompt(1500)
    scheduler = model.scheduler(slots=3)
    runner = scheduler._runner
    advance, hold = runner.advance, threading.Event()

    def held(*arguments: Any) -> Any:
        hold.wait(20)
        return advance(*arguments)

    runner.advance = held  # type: ignore[method-assign]
    leader = scheduler.submit(model.request(prompt, max_tokens=5), lambda piece: None)
    until(lambda: scheduler.counts.running == 1)
    got: queue.SimpleQueue[Any] = queue.SimpleQueue()
    scheduler.submit(model.request(prompt, temperature=0.0, max_tokens=5), got.put)
    leader.cancel()
    hold.set()
    last = got.get(timeout=20)
    while last.finish_reason is None:
        last = got.get(timeout=20)
    scheduler.close()
    assert last.usage.cached_tokens < len(prompt) - 1
    assert scheduler.counts.cancelled == 1


def test_a_medium_is_encoded_once(model: cellmd.Model, scheduler: Scheduler) -> None:
    prompt = model_cases.media_prompt(model, 7)
    shifted = cellmd.Prompt(
        (2, 130, *prompt.token_ids[1:]), tuple(MediaSpan(s.kind, s.start + 1, s.features) for s in prompt.media)
    )
    for asked, encoded in ((prompt, True), (shifted, False)):
        result = Result.of(list(scheduler.stream(model.request(asked, temperature=0.0, max_tokens=2))))
        assert bool(result.timings.encoder_ms) == encoded


def test_closing_drains_or_ends(model: cellmd.Model) -> None:
    for seconds in (60.0, 0.0):
        scheduler = model.scheduler(slots=1)
        request = model.request(model_cases.text_prompt(5), temperature=0.0, max_tokens=300)
        request.settings.end_ids = ()
        got: queue.SimpleQueue[Any] = queue.SimpleQueue()
        scheduler.submit(request, got.put)
        with pytest.raises(cellmd.ArgumentError, match="busy"):
            model.generate("hello")
        scheduler.close(drain_seconds=seconds)
        pieces = [got.get_nowait() for _ in range(got.qsize())]
        if seconds:
            assert pieces[-1].finish_reason == "length"
        else:
            assert isinstance(pieces[-1], BusyError)
        with pytest.raises(BusyError):
            scheduler.submit(request, got.put)
    assert model.generate("hello", max_tokens=1)


def test_closing_the_model_closes_its_scheduler(path: Path) -> None:
    with cellmd.load(path, threads=1, context=2048) as model:
        scheduler = model.scheduler(slots=2)
        request = model.request(model_cases.text_prompt(5), temperature=0.0, max_tokens=2000)
        request.settings.end_ids = ()
        got: queue.SimpleQueue[Any] = queue.SimpleQueue()
        scheduler.submit(request, got.put)
    scheduler.close()
    assert isinstance([got.get_nowait() for _ in range(got.qsize())][-1], BusyError)


# ---- its parts ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers())), st.booleans())
def test_clients_take_turns(items: list[tuple[str, int]], by_name: bool) -> None:
    waiting: FairQueue[tuple[str, int]] = FairQueue()
    for client, number in items:
        waiting.put(*(("here", client) if by_name else (client, "")), (client, number))
    taken = [waiting.take() for _ in range(len(waiting))]
    for client in "abc":  # first come, first served among one client's own
        assert [item for item in taken if item[0] == client] == [item for item in items if item[0] == client]
    for end in range(len(taken)):  # and nobody is served twice before another that waits is served once
        left = {client for client, _ in taken[end:]}
        counts = [sum(c == client for c, _ in taken[:end]) for client in left]
        assert not counts or max(counts) - min(counts) <= 1


def test_many_names_take_no_turns_of_other_addresses() -> None:
    waiting: FairQueue[str] = FairQueue()
    for name in ("p", "q", "r", "p"):
        waiting.put("a", name, f"a {name}")
    waiting.put("b", "p", "b p")
    waiting.put("b", "p", "b p")
    assert [waiting.take() for _ in range(3)] == ["a p", "b p", "a q"]
    assert len(waiting) == len(waiting.drain()) == 3
    assert not waiting


def test_identity_tells_media_apart(model: cellmd.Model) -> None:
    prompt = model_cases.media_prompt(model, 1)
    keys, digests = identity(prompt)
    same, _ = identity(model_cases.media_prompt(model, 1))
    other, _ = identity(cellmd.Prompt(prompt.token_ids, model_cases.media_prompt(model, 2).media))
    assert np.array_equal(keys, same)
    assert len(set(digests)) == len(prompt.media)
    inside = np.zeros(len(prompt), bool)
    for span in prompt.media:
        inside[span.start : span.start + span.features.n_soft_tokens] = True
    assert (keys[inside] < 0).all()
    assert np.array_equal(keys[~inside], np.asarray(prompt.token_ids)[~inside])
    assert (keys != other)[inside].all()


def test_encoded_media_are_bounded() -> None:
    kept = EncodedMedia(max_bytes=100)
    for i in range(5):
        kept.put(bytes([i]), i, 40)
        kept.get(bytes([0]))
    assert [kept.get(bytes([i])) for i in range(5)] == [0, None, None, None, 4]
