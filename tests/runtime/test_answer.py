"""Text, reasoning and tool calls told apart, and no marker leaked."""

from __future__ import annotations

import json

import pytest
import tokenizers

from cellmd.processors.tokenizer import Tokenizer
from cellmd.runtime.answer import Answer
from checkpoints import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(small_tokenizer())))


def read(tokenizer: Tokenizer, text: str, prompt: str = "") -> tuple[str, str, list[dict[str, object]]]:
    answer = Answer(tokenizer, tokenizer.encode(prompt))
    deltas = [answer.feed(token) for token in tokenizer.encode(text)]
    deltas.append(answer.finish())
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), answer.tool_calls


def test_plain_text(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "hello world\n\nß €") == ("hello world\n\nß €", "", [])


def test_reasoning_before_text(tokenizer: Tokenizer) -> None:
    text = "<|channel>thought\none\n\ntwo\n<channel|>say hello\n"
    assert read(tokenizer, text) == ("say hello\n", "one\n\ntwo", [])


def test_an_empty_channel(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "<|channel>thought\n<channel|>hello") == ("hello", "", [])


def test_a_channel_the_prompt_opened(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "one two<channel|>hello", prompt="<|channel>thought\n") == ("hello", "one two", [])
    assert read(tokenizer, "hello", prompt="<|channel>thought\none<channel|>") == ("hello", "", [])


def test_reasoning_that_never_ends(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "<|channel>thought\none two") == ("", "one two", [])


def test_tool_calls(tokenizer: Tokenizer) -> None:
    text = 'the<|tool_call>call:say{what:<|"|>hello "x"<|"|>,n:2}<tool_call|><|tool_call>call:f{}<tool_call|>'
    calls = [
        {"type": "function", "function": {"name": "say", "arguments": {"what": 'hello "x"', "n": 2}}},
        {"type": "function", "function": {"name": "f", "arguments": {}}},
    ]
    assert read(tokenizer, text) == ("the", "", calls)


def test_a_call_cut_short_is_still_handed_out(tokenizer: Tokenizer) -> None:
    _, _, (call,) = read(tokenizer, "<|tool_call>call:say{what:")
    assert call["function"] == {"name": "say", "arguments": "call:say{what:"}


def test_a_character_of_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer)
    pieces = [answer.feed(token).text for token in tokenizer.encode("a€b")]
    assert "".join(pieces) == "a€b"
    assert all("�" not in piece for piece in pieces)


def test_other_special_tokens_are_silent(tokenizer: Tokenizer) -> None:
    assert read(tokenizer, "hello<|turn>world<mask>") == ("helloworld", "", [])
