"""The decode loop: what ends it, what comes out, what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import model_cases
from cellmd.api import Model
from cellmd.backends import create
from cellmd.container import Container
from cellmd.errors import PromptError
from cellmd.processors.features import AudioFeatures, MediaSpan, Prompt
from cellmd.processors.output import AnswerDecoder
from cellmd.processors.tool_calls import ToolCall
from cellmd.runtime.batch import Sequence
from cellmd.runtime.generate import Runner, Settings, common_prefix, generate
from cellmd.runtime.logits import Logits
from cellmd.runtime.result import Piece, Result
from cellmd.runtime.sampler import Sampler, Sampling
from cellmd.runtime.steps import Foreseen
from cellmd.runtime.stop import StopStrings

END = 106


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Container.open(model_cases.build(tmp_path_factory.mktemp("model"), "tiny")) as container:
        yield Model(container, create("reference"))


@dataclass
class Script(Runner):
    """A runner whose model always wants the next token of a script."""

    real: Runner
    token_ids: list[int]

    def __post_init__(self) -> None:
        super().__init__(self.real.model, self.real.cache)
        self._told = 0

    def _next(self, sequence: Sequence, foreseen: Foreseen | None = None) -> Logits:
        sequence.n_done = len(sequence.token_ids)
        values = np.zeros((1, 512), np.float32)
        values[0, self.token_ids[self._told]] = 9.0
        self._told += 1
        return Logits.of(self.real.model.ops, values)[0]

    prefill = _next
    step = _next


def answer(model: Model, text: str, end: bool = True, **options: Any) -> list[Piece]:
    """The pieces of an answer in which the model says `text`, token by token."""
    tokenizer = model.processor.tokenizer
    script = Script(model._runner, [*tokenizer.encode(text), *([END] if end else [])])
    settings = Settings({END}, options.pop("max_tokens", 1000), **options)
    sequence = Sequence(0, [2, 150])
    sampler, reader = Sampler(Sampling(temperature=0)), AnswerDecoder(tokenizer)
    return list(generate(script, sequence, sampler, reader, settings, features_ms={"image": 1.0}, encoder_ms={}))


def test_pieces_come_as_they_are_said(model: Model) -> None:
    pieces = answer(model, "hello world € end")
    assert len(pieces) > 3
    assert all(piece.text for piece in pieces[:-1])
    assert all(piece.finish_reason is piece.usage is piece.timings is None for piece in pieces[:-1])
    result = Result.of(pieces)
    assert result.text == "hello world € end"
    assert result.finish_reason == "stop"
    assert result.token_ids == (*model.processor.tokenizer.encode("hello world € end"), END)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (2, len(result.token_ids))
    assert result.usage.total_tokens == 2 + len(result.token_ids)
    assert result.timings.features_ms == {"image": 1.0}
    assert result.timings.decode_ms > 0
    assert result.timings.as_dict()["decode_tokens_per_s"] > 0


def test_length(model: Model) -> None:
    result = Result.of(answer(model, "hello world", end=False, max_tokens=3))
    assert result.finish_reason == "length"
    assert len(result.token_ids) == 3


def test_stop_string_over_several_tokens(model: Model) -> None:
    pieces = answer(model, "hello world system seven", stops=StopStrings(["ld sys"]))
    assert Result.of(pieces).text == "hello wor"
    assert pieces[-1].finish_reason == "stop_string"


def test_the_beginning_of_a_stop_string_is_text_if_nothing_follows(model: Model) -> None:
    result = Result.of(answer(model, "hello wor", stops=StopStrings(["world"])))
    assert (result.text, result.finish_reason) == ("hello wor", "stop")
    result = Result.of(answer(model, "hello wor", end=False, max_tokens=3, stops=StopStrings(["world"])))
    assert result.finish_reason == "length"


def test_stop_strings_do_not_end_reasoning(model: Model) -> None:
    text = "<|channel>thought\nhello world\n<channel|>say world"
    result = Result.of(answer(model, text, stops=StopStrings(["world"])))
    assert (result.reasoning, result.text, result.finish_reason) == ("hello world", "say ", "stop_string")


def test_tool_calls_come_last(model: Model) -> None:
    pieces = answer(model, "<|tool_call>call:f{a:1}<tool_call|>")
    assert [piece.tool_calls for piece in pieces[:-1]] == [()] * (len(pieces) - 1)
    assert pieces[-1].tool_calls == (ToolCall("f", {"a": 1}, "call:f{a:1}"),)


def test_logprobs_of_each_token(model: Model) -> None:
    result = Result.of(answer(model, "hello", logprobs=True))
    assert len(result.logprobs) == len(result.token_ids)
    assert np.allclose(result.logprobs, 9 - np.log(511 + np.exp(9)))
    assert Result.of(answer(model, "hello")).logprobs == ()


def test_closing_early_leaves_the_sequence_consistent(model: Model) -> None:
    runner, prompt = model._runner, model_cases.text_prompt(20)
    sequence, _ = runner.start(prompt, slot=0)
    settings, reader = Settings(set(), 30), AnswerDecoder(model.processor.tokenizer)
    pieces = generate(runner, sequence, Sampler(Sampling(seed=1)), reader, settings, features_ms={}, encoder_ms={})
    next(pieces)
    pieces.close()
    assert sequence.n_pending == 1
    resumed = runner.step(sequence).all()
    fresh, _ = runner.start(Prompt(tuple(sequence.token_ids)), slot=0)
    np.testing.assert_allclose(resumed, runner.prefill(fresh).all(), rtol=1e-3, atol=1e-3)


def test_prompts_that_cannot_run_are_refused(model: Model) -> None:
    runner = model._runner
    with pytest.raises(PromptError, match="empty"):
        runner.check(Prompt(()))
    with pytest.raises(PromptError, match="token id 512 is outside the vocabulary of 512"):
        runner.check(Prompt((2, 512)))
    sound = MediaSpan("audio", 1, AudioFeatures(np.zeros((8, 128), np.float32), 2, 0.1))
    runner.check(Prompt((2, 497, 497), (sound,)))
    for ids in ((2, 497, 5), (2, 497)):
        with pytest.raises(PromptError, match="audio at token 1 needs 2 placeholders"):
            runner.check(Prompt(ids, (sound,)))


def test_common_prefix() -> None:
    def sound(start: int, value: float) -> MediaSpan:
        return MediaSpan("audio", start, AudioFeatures(np.full((8, 128), value, np.float32), 2, 0.1))

    old = Prompt((2, 5, 97, 97, 6, 7), (sound(2, 1.0),))
    ids = [*old.token_ids, 8, 9]
    assert common_prefix(old, ids, Prompt((2, 5, 97, 97, 6, 7, 8, 1), (sound(2, 1.0),))) == 7
    assert common_prefix(old, ids, Prompt((2, 5, 97, 97, 6, 7, 8, 9), (sound(2, 1.0),))) == 7  # the last is run
    assert common_prefix(old, ids, Prompt((2, 5, 97, 97, 6, 7, 8, 9), (sound(2, 2.0),))) == 2  # another sound
    assert common_prefix(old, ids, Prompt((2, 4, 97), ())) == 1
    assert common_prefix(old, [], old) == 0
