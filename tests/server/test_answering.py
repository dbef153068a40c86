"""One answer from scripted logits: reasoning and its budget, forms, calls, scores; and no marker in any text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cellmd
from cellmd.backends import create
from cellmd.processors.call_stream import arguments_json
from cellmd.processors.output import AnswerDecoder
from cellmd.runtime.answering import Answering, Settings
from cellmd.runtime.logits import Logits
from cellmd.runtime.result import Piece, Timings
from cellmd.runtime.sampler import Sampler, Sampling
from cellmd.server.grammar import Grammars

END, CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE = 106, 100, 101, 48, 49, 52


def logits_for(*tokens: int) -> Logits:
    """Wants these tokens, the first most."""
    values = np.zeros((1, 512), np.float32)
    for i, token in enumerate(tokens):
        values[0, token] = 20.0 - i
    return Logits.of(create("reference"), values)[0]


def run(model: cellmd.Model, script: list[tuple[int, ...]], **options: Any) -> tuple[list[int], list[Piece]]:
    """The tokens that were taken and the pieces, while the model wants what the script says."""
    chosen = Settings(**{"end_ids": (END,), "max_tokens": 100, **options})
    decoder = AnswerDecoder(model.processor.tokenizer, ())
    answering = Answering(Sampler(Sampling(temperature=0.0)), decoder, chosen)
    tokens, pieces = [], []
    for wanted in script:
        tokens.append(answering.take(logits_for(*wanted)))
        if answering.finish is not None:
            break
        piece = answering.piece()
        pieces += [piece] if piece is not None else []
    return tokens, [*pieces, answering.last(answering.usage(0, 0), Timings())]


def ids(model: cellmd.Model, text: str) -> list[tuple[int, ...]]:
    return [(token,) for token in model.processor.tokenizer.encode(text)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def reasoning_of(pieces: list[Piece]) -> str:
    return "".join(piece.reasoning for piece in pieces)


def test_a_budget_closes_the_reasoning(model: cellmd.Model) -> None:
    script = [*ids(model, "<|channel>thought\nhello world hello world"), *ids(model, " seven"), (END,)]
    n_header = len(ids(model, "thought\n"))
    tokens, pieces = run(model, script, reasoning_budget=n_header + 1)
    assert tokens.index(CHANNEL_END) == 1 + n_header + 1
    assert reasoning_of(pieces) == "h"  # a letter is a token of the small vocabulary
    assert "seven" in text_of(pieces)
    assert pieces[-1].usage.reasoning_tokens == n_header + 2  # type: ignore[union-attr]


def test_a_form_binds_the_answer_and_not_the_reasoning(model: cellmd.Model) -> None:
    grammars = Grammars(model.processor.tokenizer, 512, END)
    script = [*ids(model, "<|channel>thought\nhello<channel|>"), *ids(model, "seven one two"), *[(END,)] * 8]
    _, pieces = run(model, script, constraint=grammars.choice(["one", "two"]), thinking=True)
    assert reasoning_of(pieces) == "hello"
    assert text_of(pieces) in ("one", "two")
    assert pieces[-1].finish_reason == "stop"
    _, pieces = run(model, script, constraint=grammars.choice(["one", "two"]))  # no reasoning was asked for
    assert reasoning_of(pieces) == ""
    assert text_of(pieces) in ("one", "two")


def test_an_answer_ends_after_its_last_call(model: cellmd.Model) -> None:
    call = [
        (CALL,),
        *ids(model, "call:look{place:"),
        (QUOTE,),
        *ids(model, 'a "wall"'),
        (QUOTE,),
        *ids(model, "}"),
        (CALL_END,),
    ]
    _, pieces = run(model, [*call, *call, (END,)], max_tool_calls=1)
    assert [(c.name, c.arguments) for c in pieces[-1].tool_calls] == [("look", {"place": 'a "wall"'})]
    _, pieces = run(model, [*call, *call, (END,)])
    assert len(pieces[-1].tool_calls) == 2


def test_a_grammar_of_calls_takes_what_the_notation_allows(model: cellmd.Model) -> None:
    grammars = Grammars(model.processor.tokenizer, 512, END)
    function = {"name": "look", "parameters": {"type": "object", "properties": {"place": {}, "n": {}}}}
    arguments = [*ids(model, "n:[1,-2.5,{a:true}],place:"), (QUOTE,), *ids(model, 'a "wall", {b}'), (QUOTE,)]
    call = [(CALL,), *ids(model, "call:look{"), *arguments, *ids(model, "}"), (CALL_END,)]
    tokens, pieces = run(model, [*call, (END,)], constraint=grammars.tool_calls([function], several=True))
    assert tokens == [token for (token,) in [*call, (END,)]]
    assert pieces[-1].tool_calls[0].arguments == {"n": [1, -2.5, {"a": True}], "place": 'a "wall", {b}'}
    tokens, _ = run(model, [(120,)], constraint=grammars.tool_calls([function], several=True))
    assert tokens[0] == CALL


def test_a_call_of_the_models_own_will_has_the_functions_form(model: cellmd.Model) -> None:
    """Text is free; from the token that opens a call on, the schema binds."""
    grammars = Grammars(model.processor.tokenizer, 512, END)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = grammars.tool_calls([{"name": "look", "parameters": schema}], several=False)
    call = [(CALL,), *ids(model, "call:look{n:"), (QUOTE, ids(model, "7")[0][0]), *ids(model, "}"), (CALL_END,)]
    _, pieces = run(model, [*ids(model, "so"), *call, *ids(model, "and"), *call, (END,)], call_form=form)
    assert [c.arguments for c in pieces[-1].tool_calls] == [{"n": 7}, {"n": 7}]
    assert text_of(pieces) == "soand"
    deltas = [delta for piece in pieces for delta in piece.call_deltas]
    assert "".join(delta.arguments for delta in deltas if delta.index == 1) == '{"n": 7}'
    _, pieces = run(model, [*ids(model, "so"), (CALL,), (END,), (END,)], call_form=form, max_tokens=4)
    assert pieces[-1].finish_reason == "length"  # an open call cannot be ended


def test_a_call_may_stand_in_the_place_of_a_formed_answer(model: cellmd.Model) -> None:
    grammars = Grammars(model.processor.tokenizer, 512, END)
    form = grammars.tool_calls([{"name": "look"}], several=False)
    options = {"constraint": grammars.choice(["one", "two"]), "call_form": form}
    call = [(CALL,), *ids(model, "call:look{}"), (CALL_END,)]
    _, pieces = run(model, [*call, (END,)], **options)
    assert [c.name for c in pieces[-1].tool_calls] == ["look"]
    assert pieces[-1].finish_reason == "stop"
    options = {"constraint": grammars.choice(["one", "two"]), "call_form": form}
    _, pieces = run(model, [*ids(model, "one"), (CALL, END)], **options)
    assert (text_of(pieces), pieces[-1].tool_calls) == ("one", ())  # it has taken its form


def test_scores_tell_text_from_the_rest(model: cellmd.Model) -> None:
    script = [*ids(model, "<|channel>thought\nhello<channel|>"), *ids(model, "one two"), (END,)]
    tokens, pieces = run(model, script, logprobs=True, top_logprobs=2)
    scores = [score for piece in pieces for score in piece.scores]
    assert [score.token_id for score in scores] == tokens
    spoken = [score.token_id for score in scores if score.spoken]
    assert spoken == model.processor.tokenizer.encode("one two")
    assert all(score.logprob == pytest.approx(score.top[0][1]) for score in scores)


MARKERS = [CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE, 50, 51, 46, 47, 98, 105]


@given(
    st.lists(st.one_of(st.sampled_from(MARKERS), st.integers(107, 511)), min_size=1, max_size=40), st.integers(1, 40)
)
@settings(deadline=None)
def test_no_marker_is_ever_said(model: cellmd.Model, tokens: list[int], cut: int) -> None:
    """Whatever the model says, and wherever it is cut."""
    check_no_marker(model, tokens, cut)


@given(
    st.lists(
        st.sampled_from(["<|tool_call>", "call:f{", "a:", "x", '<|"|>', ",", "}", "<tool_call|>", "[", "<|think|>"])
    )
)
@example(["call:f{", "a:", "x", '<|"|>', "}", "<tool_call|>"])
@example(["call:f{", "a", '<|"|>', ":", "x", "}", "<tool_call|>"])
@example(["call:f", '<|"|>', "{", "}", "<tool_call|>"])
@settings(deadline=None, max_examples=200)
def test_no_marker_is_in_a_call(model: cellmd.Model, parts: list[str]) -> None:
    tokens = model.processor.tokenizer.encode("<|tool_call>" + "".join(parts))
    for cut in {len(tokens), max(1, len(tokens) - 1)}:
        check_no_marker(model, tokens, cut)


def check_no_marker(model: cellmd.Model, tokens: list[int], cut: int) -> None:
    _, pieces = run(model, [(token,) for token in tokens], max_tokens=cut)
    deltas = [delta for piece in pieces for delta in piece.call_deltas]
    calls = [f"{arguments_json(call)}{call.name}{call.arguments}" for call in pieces[-1].tool_calls]
    said = text_of(pieces) + reasoning_of(pieces) + "".join(f"{d.name}{d.arguments}" for d in deltas) + "".join(calls)
    for name in model.processor.tokenizer.special_tokens.values():
        assert name not in said
