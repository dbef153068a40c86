"""Chat completions and completions, as OpenAI's own client uses them."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import cellmd
from live_server import Live, until
from processors.media_files import film_file, sound_file, tone

LONG = {"type": "regex", "regex": "[a-z]{4000}"}
"""A form of which no test sees the end."""

HELLO: Any = [{"role": "user", "content": "hello world"}]
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "look at a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "n": {"type": "integer"}}},
    },
}


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(width: int = 60, height: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def create(client: openai.OpenAI, messages: Any = HELLO, **options: Any) -> Any:
    chosen = {"model": "tiny", "temperature": 0.0, "max_completion_tokens": 12, **options}
    return client.chat.completions.create(messages=messages, **chosen)


# ---- text -----------------------------------------------------------------------------------------------


def test_an_answer_is_the_models_own(client: openai.OpenAI, live: Live, path: Any) -> None:
    answer = create(client)
    with cellmd.load(path, threads=1, context=2048) as model:
        own = model.generate("hello world", temperature=0.0, max_tokens=12)
    assert answer.choices[0].message.content == own.text
    assert answer.usage.prompt_tokens == own.usage.prompt_tokens
    assert answer.usage.completion_tokens == own.usage.completion_tokens == 12
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "tiny"


def test_a_stream_is_the_same_in_pieces(client: openai.OpenAI) -> None:
    whole = create(client, max_completion_tokens=40)
    chunks = list(create(client, max_completion_tokens=40, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == whole.choices[0].message.content
    assert len([text for text in said if text]) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_seeds_and_several_choices(client: openai.OpenAI) -> None:
    options = {"temperature": 1.0, "seed": 7, "n": 3}
    one, again = create(client, **options), create(client, **options)
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert one.usage.completion_tokens == again.usage.completion_tokens <= 36
    streamed = ["", "", ""]
    for chunk in create(client, **options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_strings(client: openai.OpenAI) -> None:
    text = create(client, max_completion_tokens=40).choices[0].message.content
    stop = text[10:13]
    answer = create(client, max_completion_tokens=40, stop=[stop])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities(client: openai.OpenAI) -> None:
    content = create(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        assert token.logprob <= 0
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # the likeliest was taken
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
    chunks = list(create(client, logprobs=True, stream=True))
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in content]


def test_a_system_message_and_earlier_turns(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "say one"},
        *HELLO,
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": [{"type": "text", "text": "what is that"}]},
    ]
    first = create(client, messages)
    again = create(client, messages)
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_biases_and_penalties(client: openai.OpenAI, live: Live) -> None:
    tokenizer = live.engine.model.processor.tokenizer
    (wanted,) = tokenizer.encode("a")
    always = create(client, logit_bias={str(wanted): 100}, max_completion_tokens=6)
    assert always.choices[0].message.content == "aaaaaa"
    two = {str(token): 100 for word in ("a", "b") for token in tokenizer.encode(word)}
    answer = create(client, logit_bias=two, max_completion_tokens=100, frequency_penalty=2.0, presence_penalty=0.5)
    assert set(answer.choices[0].message.content) >= {"a", "b"}


# ---- media ----------------------------------------------------------------------------------------------


def test_pictures_sounds_and_films(client: openai.OpenAI, live: Live) -> None:
    sound = sound_file("wav", tone(0.5, 16_000)[None], 16_000)
    content = [
        {"type": "image_url", "image_url": {"url": data_url("image/png", png()), "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}},
        {"type": "video_url", "video_url": {"url": data_url("video/mp4", film_file("mp4", n_frames=3))}},
        {"type": "text", "text": "what is this"},
    ]
    answer = create(client, [{"role": "user", "content": content}])
    prompt = live.engine.model.prepare(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": png()},
                    {"type": "audio", "audio": sound},
                    {"type": "video", "video": film_file("mp4", n_frames=3)},
                    {"type": "text", "text": "what is this"},
                ],
            }
        ],
        image_tokens=70,
    )
    assert {span.kind for span in prompt.media} == {"image", "audio", "video"}
    assert answer.usage.prompt_tokens == len(prompt)


def test_detail_and_budget_say_how_many_tokens_a_picture_takes(client: openai.OpenAI) -> None:
    def tokens(detail: str, **extra: Any) -> int:
        url = {"url": data_url("image/png", png(800, 600)), "detail": detail}
        message = {"role": "user", "content": [{"type": "image_url", "image_url": url}]}
        return int(create(client, [message], max_completion_tokens=1, extra_body=extra).usage.prompt_tokens)

    assert tokens("low") < tokens("auto") < tokens("high")
    assert tokens("high", image_tokens=70) == tokens("low")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd", "data:image/png;base64,AAAA", "data:,x", ""],
)
def test_nothing_is_fetched_or_read_from_disk(client: openai.OpenAI, url: str) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    with pytest.raises(openai.BadRequestError) as error:
        create(client, [message])
    assert error.value.code == "invalid_media"


# ---- form -----------------------------------------------------------------------------------------------


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "yy"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema}}
    for seed in range(4):
        answer = create(client, temperature=1.0, seed=seed, response_format=form, max_completion_tokens=100)
        content = json.loads(answer.choices[0].message.content)
        assert content.keys() == {"a", "b"}
        assert 0 <= content["a"] <= 99
        assert content["b"] in ("x", "yy")
        assert answer.choices[0].finish_reason == "stop"


def test_regular_expressions_choices_and_grammars(client: openai.OpenAI) -> None:
    forms: list[tuple[dict[str, Any], str]] = [
        ({"type": "regex", "regex": "[a-c]{3}-[0-9]{2}"}, "[a-c]{3}-[0-9]{2}"),
        ({"type": "choice", "choices": ["yes", 'no "really"']}, '(yes|no "really")'),
        ({"type": "grammar", "grammar": 'start: "one" ("," "two")+'}, "one(,two)+"),
    ]
    for form, pattern in forms:
        text = (
            create(client, temperature=1.0, seed=5, response_format=form, max_completion_tokens=60).choices[0].message
        )
        assert re.match(pattern, text.content)


def test_a_forms_errors_are_the_clients(client: openai.OpenAI) -> None:
    for form in (
        {"type": "regex", "regex": "("},
        {"type": "grammar", "grammar": "start: nothing"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}},
        {"type": "regex", "regex": "a" * 300_000},
        {"type": "poem"},
    ):
        with pytest.raises(openai.BadRequestError):
            create(client, response_format=form)


CALLED: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "max_completion_tokens": 60}


def seed_of_a_call(client: openai.OpenAI) -> int:
    """A seed with which the random model, which has to begin a call, also ends it in time."""
    for seed in range(100):
        answer = create(client, tools=[LOOK], **CALLED, temperature=1.0, seed=seed)
        if answer.choices[0].finish_reason == "tool_calls":
            return seed
    raise AssertionError("no call in 100 answers")


def test_a_tool_must_be_called(client: openai.OpenAI) -> None:
    seed = seed_of_a_call(client)
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        answer = create(client, tools=[LOOK], **{**CALLED, "tool_choice": choice}, temperature=1.0, seed=seed)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert len(message.tool_calls) == 1
        assert message.tool_calls[0].function.name == "look"
        assert json.loads(message.tool_calls[0].function.arguments).keys() <= {"place", "n"}
        assert message.content is None


def test_a_streamed_tool_call_and_its_answer(client: openai.OpenAI) -> None:
    seed = seed_of_a_call(client)
    options = {"tools": [LOOK], **CALLED, "temperature": 1.0, "seed": seed}
    whole = create(client, **options).choices[0].message.tool_calls[0].function
    chunks = list(create(client, **options, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == whole.name == "look"
    assert calls[0].id
    assert {call.index for call in calls} == {0}
    assert all(call.function.name is None and call.id is None for call in calls[1:])
    assert "".join(call.function.arguments for call in calls) == whole.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    function = {"name": "look", "arguments": whole.arguments}
    turns = [
        *HELLO,
        {"role": "assistant", "tool_calls": [{"id": calls[0].id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": calls[0].id, "content": "a wall"},
    ]
    assert create(client, turns, tools=[LOOK]).choices[0].finish_reason


FILED: Any = {
    "type": "function",
    "function": {
        "name": "file",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"type": "string", "enum": ["a", "b"]},
                "n": {"type": "integer", "minimum": 1, "maximum": 9},
                "ok": {"type": "boolean"},
            },
            "required": ["kind", "n", "ok"],
            "additionalProperties": False,
        },
    },
}


def test_calls_fit_their_schema_however_the_model_wavers(client: openai.OpenAI) -> None:
    """Required and named, whole and streamed, one call and several."""
    named = {"type": "function", "function": {"name": "file"}}
    n_calls = 0
    for seed in range(6):
        for choice in ("required", named):
            options = {"tools": [FILED, LOOK] if choice == named else [FILED], "tool_choice": choice}
            options |= {"temperature": 1.0, "seed": seed, "max_completion_tokens": 150}
            whole = create(client, **options).choices[0]
            streamed: dict[int, str] = {}
            for chunk in create(client, **options, stream=True):
                for call in chunk.choices[0].delta.tool_calls or []:
                    streamed[call.index] = streamed.get(call.index, "") + call.function.arguments
            calls = whole.message.tool_calls
            assert [streamed[i] for i in range(len(calls))] == [call.function.arguments for call in calls]
            for call in calls if whole.finish_reason == "tool_calls" else calls[:-1]:
                arguments = json.loads(call.function.arguments)
                assert arguments.keys() == {"kind", "n", "ok"}
                assert arguments["kind"] in ("a", "b")
                assert 1 <= arguments["n"] <= 9
                assert isinstance(arguments["ok"], bool)
            n_calls += len(calls)
    assert n_calls > 12  # several at once among them


def test_only_some_tools_are_allowed(client: openai.OpenAI) -> None:
    def allowed(mode: str, *names: str) -> Any:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    options: Any = {"tools": [LOOK, FILED], "temperature": 1.0, "max_completion_tokens": 40}
    for seed in range(4):
        answer = create(client, **options, tool_choice=allowed("required", "file"), seed=seed).choices[0]
        assert {call.function.name for call in answer.message.tool_calls} == {"file"}
    prompts = [create(client, **options, tool_choice=c).usage.prompt_tokens for c in ("auto", allowed("auto", "look"))]
    assert prompts[1] < prompts[0]  # the other is not shown to the model
    for wrong in (allowed("required", "other"), allowed("perhaps", "look"), allowed("auto")):
        with pytest.raises(openai.BadRequestError):
            create(client, **options, tool_choice=wrong)


def test_a_cut_call_ends_as_length_with_what_there_is(client: openai.OpenAI) -> None:
    options = {"tools": [FILED], "tool_choice": "required", "max_completion_tokens": 14, "temperature": 0.0}
    whole = create(client, **options).choices[0]
    assert whole.finish_reason == "length"
    chunks = list(create(client, **options, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(call.function.arguments for call in calls) == whole.message.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == "length"


def test_strict_schemas_that_cannot_be_held_to(client: openai.OpenAI) -> None:
    odd = {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"type": "poem"}}}}
    assert create(client, tools=[{"type": "function", "function": odd}]).choices
    for options in ({"strict": True}, {"name": "odd"}):
        tool = {"type": "function", "function": {**odd, **options}}
        required = {} if "strict" in options else {"tool_choice": "required"}
        with pytest.raises(openai.BadRequestError, match="poem"):
            create(client, tools=[tool], **required)


def test_tools_that_are_not_there(client: openai.OpenAI) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    for options in ({"tool_choice": "required"}, {"tools": [LOOK], "tool_choice": other}):
        with pytest.raises(openai.BadRequestError):
            create(client, **options)


def test_reasoning_is_switched_and_bounded(client: openai.OpenAI, live: Live) -> None:
    plain = create(client).usage.prompt_tokens
    for extra in (
        {"reasoning_effort": "low"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_budget": 5},
    ):
        assert create(client, extra_body=extra).usage.prompt_tokens > plain
    for extra in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert create(client, extra_body=extra).usage.prompt_tokens == plain


# ---- completions ----------------------------------------------------------------------------------------


def test_completions(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "temperature": 0.0, "max_tokens": 8}
    answer = client.completions.create(prompt=["hello", "say"], n=2, logprobs=2, echo=True, **options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("hello")
    assert answer.choices[2].text.startswith("say")
    assert answer.choices[0].text == answer.choices[1].text
    assert len(answer.choices[0].logprobs.tokens) == 8
    assert answer.usage.completion_tokens == 32
    chunks = list(client.completions.create(prompt="hello", stream=True, echo=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


# ---- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "invalid_value"),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"n": 0}, 400, "invalid_value"),
        ({"n": 9}, 400, None),
        ({"messages": [{"role": "user", "content": "so " * 2048}]}, 400, "context_length_exceeded"),
        ({"logit_bias": {"5": 1.0}}, 200, None),
        ({"logit_bias": {"5": 101}}, 400, "invalid_value"),
        ({"logit_bias": {"x": 1}}, 400, "invalid_value"),
        ({"logit_bias": {"512": 1}}, 400, "invalid_value"),
        ({"presence_penalty": 2.5}, 400, "invalid_value"),
        ({"frequency_penalty": -3}, 400, "invalid_value"),
        ({"seed": -1}, 200, None),
        ({"temperature": "warm"}, 400, "invalid_value"),
        ({"unknown": True}, 200, None),
    ],
)
def test_errors_have_openais_shape(live: Live, change: dict[str, Any], status: int, code: str | None) -> None:
    body = {"messages": HELLO, "max_completion_tokens": 1, **change}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    if status != 200:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["code"] == code


def test_a_client_that_leaves_frees_its_slot(live: Live) -> None:
    before = live.counts.cancelled
    body = {"messages": HELLO, "max_completion_tokens": 1900, "stream": True, "response_format": LONG}
    with live.slowed():
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()  # kept: httpx closes the connection of an iterator that is dropped
            next(lines)
            until(lambda: live.counts.running == 1)
        until(lambda: live.counts.running == 0)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{live.url}/v1/chat/completions", json={**body, "stream": False}, timeout=2.0)
        until(lambda: live.counts.running == 0)
    assert live.counts.cancelled == before + 2
