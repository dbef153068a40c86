"""Answers taken apart: reasoning, tool calls and text, token by token; tool calls as the inverse of the template."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.processors.call_stream import CallStream, arguments_json
from cellmd.processors.output import AnswerDecoder, AnswerPiece, parse_answer
from cellmd.processors.template import ChatTemplate
from cellmd.processors.tool_calls import QUOTE, CallDelta, ToolCall, parse_tool_call, parse_tool_calls
from processors.conversations import CLOCK_TOOL
from processors.folders import TEMPLATE, TOKENIZERS, processor_of

TOKENIZER = processor_of("small").tokenizer
CHAT_TEMPLATE = ChatTemplate(TEMPLATE)


def parsed(answer: str, prompt: str = "", name: str = "small") -> AnswerPiece:
    tokenizer = processor_of(name).tokenizer
    return parse_answer(tokenizer, tokenizer.encode(answer), tokenizer.encode(prompt))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_reasoning_and_text(name: str) -> None:
    answer = parsed("<|channel>thought\nOne.\n\nTwo 🙂.\n<channel|>The answer.\n<turn|>", name=name)
    assert answer == AnswerPiece("The answer.\n", "One.\n\nTwo 🙂.")
    assert parsed("No thoughts.<turn|>", name=name) == AnswerPiece("No thoughts.")
    assert parsed("<|channel>thought\n<channel|>Nothing to think.", name=name) == AnswerPiece("Nothing to think.")
    twice = parsed("<|channel>thought\nA\n<channel|>1<|channel>thought\nB\n<channel|>2", name=name)
    assert twice == AnswerPiece("12", "AB")


def test_reasoning_that_the_prompt_has_opened() -> None:
    assert parsed("I see.\n<channel|>Done.", "<|turn>model\n<|channel>thought\n") == AnswerPiece("Done.", "I see.")
    assert parsed("thought\nI see.", "<|turn>model\n<|channel>") == AnswerPiece("", "I see.")
    for closed in ("<|channel>thought\nx<channel|>", "<|channel>thought\nx<turn|>\n<|turn>model\n", ""):
        assert parsed("Done.", closed) == AnswerPiece("Done.")
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]},
        {"role": "tool", "content": "12:00"},
    ]
    prompt = processor_of("small").prepare(messages, tools=[CLOCK_TOOL], thinking=True)
    answer = parse_answer(TOKENIZER, TOKENIZER.encode("Noon.\n<channel|>It is noon."), prompt.token_ids)
    assert answer == AnswerPiece("It is noon.", "Noon.")


def test_reasoning_cut_short_or_unnamed() -> None:
    assert parsed("<|channel>thought\nI wond") == AnswerPiece("", "I wond")
    assert parsed("<|channel>thought\nline\n") == AnswerPiece("", "line\n")
    assert parsed("<|channel>tho") == AnswerPiece("", "tho")
    assert parsed("<|channel>thought") == AnswerPiece()
    assert parsed("<|channel>in one line<channel|>x") == AnswerPiece("x", "in one line")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tool_calls(name: str) -> None:
    raw = 'call:get_weather{place:<|"|>Zürich, <b>{x}</b><|"|>,days:[1,2.5],near:{strict:true,none:null}}'
    answer = parsed(
        f"Wait.<|tool_call>{raw}<tool_call|><|tool_call>call:clock{{}}<tool_call|><|tool_response>", name=name
    )
    arguments = {"place": "Zürich, <b>{x}</b>", "days": [1, 2.5], "near": {"strict": True, "none": None}}
    assert answer.text == "Wait."
    assert answer.tool_calls == (
        ToolCall("get_weather", arguments, raw),
        ToolCall("clock", {}, "call:clock{}"),
    )


def test_a_call_that_never_ends_is_unfinished_or_text_without_markers() -> None:
    answer = parsed('So: <|tool_call>call:clock{zone:<|"|>CET<turn|>')
    raw = 'call:clock{zone:<|"|>CET'
    assert (answer.text, answer.tool_calls) == ("So: ", (ToolCall("clock", None, raw, finished=False),))
    assert joined(answer.call_deltas) == [("clock", '{"zone": "CET')]
    assert arguments_json(answer.tool_calls[0]) == '{"zone": "CET'
    assert parsed('So: <|tool_call>call:clock<|"|><turn|>') == AnswerPiece('So: call:clock"')


def joined(deltas: Iterable[CallDelta]) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if delta.name is not None:
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        name, arguments = calls[delta.index]
        calls[delta.index] = name, arguments + delta.arguments
    return calls


def test_calls_are_told_while_they_are_written() -> None:
    notation = (
        '<|tool_call>call:look{n:[1,{a:true}],place:<|"|>a long text, with "quotes"<|"|>}<tool_call|>'
        "<|tool_call>call:clock{}<tool_call|><|tool_call>nonsense<tool_call|>"
    )
    decoder = AnswerDecoder(TOKENIZER)
    pieces = [decoder.feed(token_id) for token_id in TOKENIZER.encode(notation)]
    deltas = [delta for piece in pieces for delta in piece.call_deltas]
    assert joined(deltas) == [
        ("look", '{"n": [1, {"a": true}], "place": "a long text, with \\"quotes\\""}'),
        ("clock", "{}"),
        ("", "nonsense"),
    ]
    assert sum(delta.index == 0 for delta in deltas) > 10
    calls = [call for piece in pieces for call in piece.tool_calls]
    assert joined(deltas) == [(call.name, arguments_json(call)) for call in calls]


BRACKETS = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>']
MARKERS = [*BRACKETS, "<turn|>", "thought\n", "\n", "call:f{", "}"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(MARKERS) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=20))
def test_any_answer_shows_no_marker_and_loses_no_text(parts: list[str]) -> None:
    ids = TOKENIZER.encode("".join(parts))
    decoder = AnswerDecoder(TOKENIZER)
    pieces = [*(decoder.feed(token_id) for token_id in ids), decoder.flush()]
    shown = "".join(piece.text + piece.reasoning for piece in pieces)
    for marker in TOKENIZER.special_tokens.values():
        assert marker not in shown
    if not any(part in BRACKETS for part in parts):
        assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(ids)


# ---- the notation of tool calls -------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: '<|"|>' not in text)
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_ -]{0,8}[A-Za-z0-9_]", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(name=st.from_regex(r"[a-z_]{1,12}", fullmatch=True), arguments=st.dictionaries(keys, values, max_size=4))
def test_parsing_inverts_the_template(name: str, arguments: dict[str, Any]) -> None:
    """`format_argument` of the model's own template writes; the parser reads back the same call."""
    call = {"function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    (found,) = parse_tool_calls(CHAT_TEMPLATE.render(messages))
    assert (found.name, found.arguments) == (name, arguments)


@pytest.mark.parametrize(
    ("raw", "name", "arguments"),
    [
        ("call:f{}", "f", {}),
        (" call:f { a : 1 , b : [ ] } ", "f", {"a": 1, "b": []}),
        ('call:f{<|"|>a b<|"|>:<|"|>x<|"|>}', "f", {"a b": "x"}),
        ("call:f{city:New York,n:-1.5e3}", "f", {"city": "New York", "n": -1500.0}),
        ("call:a.b-c{x:inf}", "a.b-c", {"x": float("inf")}),
        ("call:f{a:1", "f", None),
        ("call:f{a:1}}", "f", None),
        ("call:f{a:1,}", "f", None),
        ("call:f{a}", "f", None),
        ('call:f{a:<|"|>x}', "f", None),
        ("call:f{a:" + "[" * 100 + "]" * 100 + "}", "f", None),
        ("call:f", "", None),
        ("nonsense", "", None),
        ("", "", None),
    ],
)
def test_notation(raw: str, name: str, arguments: dict[str, Any] | None) -> None:
    assert parse_tool_call(raw) == ToolCall(name, arguments, raw)


@settings(max_examples=300, deadline=None)
@given(arguments=st.dictionaries(keys, values, max_size=4), cuts=st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_the_stream_is_the_json_of_the_whole(arguments: dict[str, Any], cuts: list[int]) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    (found,) = parse_tool_calls(CHAT_TEMPLATE.render(messages))
    stream, made, rest = CallStream(), "", found.raw
    for cut in itertools.cycle(cuts):
        made += stream.feed(rest[:cut])
        rest = rest[cut:]
        if not rest:
            break
    assert made == arguments_json(found)
    assert stream.name == "f"
    assert "Infinity" not in made or "Infinity" in found.raw


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*'{}[]:, a1"', QUOTE, QUOTE[:2], "\n", "ü"]), max_size=30))
def test_any_notation_streams_as_far_as_it_can_be_read(parts: list[str]) -> None:
    """Piece by piece as at once; and where the parser finds a call, the same call, twice-named arguments included."""
    raw = "call:f{" + "".join(parts)
    stream = CallStream()
    made = "".join(stream.feed(character) for character in raw)
    assert made == CallStream().feed(raw)
    call = parse_tool_call(raw)
    if call.arguments is not None:
        assert json.loads(made) == json.loads(arguments_json(call))


@given(st.text(max_size=60))
def test_any_text_parses_to_something(text: str) -> None:
    assert parse_tool_call("call:f{" + text).name == "f"
