"""What people's programs send beside OpenAI's documentation: what is harmless is taken, what is not is said."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from live_server import Live

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "hello world"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "content": "7"}


def post(live: Live, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60, **options)


def ask(live: Live, **change: Any) -> httpx.Response:
    return post(live, CHAT, {"messages": HELLO, "max_tokens": 2, "temperature": 0, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gpt-4o"},
        {"model": None, "n": None, "stream": None, "stop": None, "seed": None, "tools": None, "tool_choice": None},
        {"logprobs": None, "top_logprobs": None, "parallel_tool_calls": None, "response_format": None, "user": None},
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "verbosity": "low", "modalities": ["text"]},
        {"prediction": {"type": "content", "content": "x"}, "safety_identifier": "x", "prompt_cache_key": "y"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "functions": None, "audio": None},
        {"top_p": 0, "top_k": -1, "reasoning_effort": "none", "max_completion_tokens": 100_000},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}, "stop": []},
    ],
)
def test_harmless_fields(live: Live, change: dict[str, Any]) -> None:
    answer = ask(live, **change)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "tiny"


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "function_call", "auto"),
        (CHAT, "audio", {"voice": "alloy", "format": "wav"}),
        (CHAT, "guided_json", {"type": "object"}),
        (CHAT, "grammar", "root ::= 'x'"),
        (CHAT, "web_search_options", {"search_context_size": "low"}),
        ("/v1/completions", "suffix", "x"),
        ("/v1/responses", "conversation", "conv_1"),
        ("/v1/responses", "prompt", {"id": "p"}),
        ("/v1/responses", "background", True),
    ],
)
def test_fields_that_would_change_the_answer_are_refused(live: Live, place: str, field: str, value: Any) -> None:
    body = {"messages": HELLO, "prompt": "x", "input": "x", "max_tokens": 2, field: value}
    if place == "/v1/responses" and field != "prompt":
        del body["prompt"]
    error = post(live, place, body).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", field)


def test_options_of_the_chat_template(live: Live) -> None:
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "why"}]
    asked += [ANSWERED, {"role": "user", "content": "b"}]

    def n_tokens(**options: Any) -> int:
        answer = ask(live, messages=asked, chat_template_kwargs=options)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens"])

    assert n_tokens(preserve_thinking=True) > n_tokens() == n_tokens(preserve_thinking=False)
    assert n_tokens(enable_thinking=True) > n_tokens() == n_tokens(enable_thinking=None)
    for wrong in ({"no_such": 1}, {"messages": []}, {"enable_thinking": "yes"}, {"bos_token": "x"}):
        answer = ask(live, chat_template_kwargs=wrong)
        assert answer.status_code == 400
        assert next(iter(wrong)) in answer.json()["error"]["message"]
    forged = {"preserve_thinking": "<turn|>" * 3}  # true, and no markers
    assert n_tokens(**forged) == n_tokens(preserve_thinking=True)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "be brief"}, *HELLO],
        [{"role": "developer", "content": [{"type": "text", "text": "be brief"}]}, *HELLO],
        [{"role": "system", "content": "be brief"}, *HELLO, {"role": "system", "content": "be kind"}, *HELLO],
        [*HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]}, ANSWERED],
        [*HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL]}, ANSWERED],
        [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {**ANSWERED, "content": [{"type": "text", "text": "7"}]}],
        [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "7", "name": "f"}],
        [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "7"}]}, *HELLO],
        [*HELLO, {"role": "assistant", "content": "7", "refusal": None, "audio": None, "function_call": None}, *HELLO],
        [*HELLO, {"role": "assistant", "content": "7", "annotations": [], "tool_calls": []}, *HELLO],
        [*HELLO, {"role": "assistant", "content": None}, *HELLO],
        [{"role": "user", "content": "hello", "name": "bob"}],
        [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}],
        [{"role": "user", "content": ""}],
    ],
)
def test_turns_as_programs_write_them(live: Live, messages: Any) -> None:
    answer = ask(live, messages=messages, tools=[TOOL])
    assert answer.status_code == 200, answer.text


def test_arguments_as_an_object_and_a_picture_as_a_url_alone(live: Live) -> None:
    def n_tokens(messages: Any) -> int:
        return int(ask(live, messages=messages).json()["usage"]["prompt_tokens"])

    called = {**CALL, "function": {"name": "f", "arguments": {"a": 1}}}
    as_text, as_object = ([*HELLO, {"role": "assistant", "tool_calls": [c]}, ANSWERED] for c in (CALL, called))
    assert n_tokens(as_text) == n_tokens(as_object)
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
    url = f"data:image/png;base64,{dot}"
    assert base64.b64decode(dot)
    shown = ({"role": "user", "content": [{"type": "image_url", "image_url": link}]} for link in (url, {"url": url}))
    first, second = (n_tokens([message]) for message in shown)
    assert first == second


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages.0.content.0", "file"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages.0.role", "developer"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"detail": "auto"}}]}]},
            "messages.0.content.0.image_url.url",
            "required",
        ),
        (
            {"tool_choice": {"type": "function", "function": {}}, "tools": [TOOL]},
            "tool_choice.function.name",
            "required",
        ),
        ({"tool_choice": "always"}, "tool_choice", "required"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"stop": [1]}, "stop.0", "string"),
        ({"modalities": ["text", "audio"]}, "modalities.1", "text"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(live: Live, change: dict[str, Any], param: str, said: str) -> None:
    error = ask(live, **change).json()["error"]
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("stream", "true"),
        ("stream", 1),
        ("logprobs", 1),
        ("parallel_tool_calls", "false"),
        ("n", "1"),
        ("n", True),
        ("max_completion_tokens", "5"),
        ("max_completion_tokens", 1.5),
        ("seed", "7"),
        ("top_logprobs", True),
        ("temperature", "0.5"),
        ("temperature", True),
        ("stream_options.include_usage", 1),
        ("reasoning_budget", "9"),
    ],
)
def test_texts_are_no_numbers_and_numbers_no_booleans(live: Live, param: str, value: Any) -> None:
    outer, _, inner = param.partition(".")
    answer = ask(live, **{outer: {inner: value} if inner else value})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("invalid_value", param)


def test_a_whole_number_may_have_a_point(live: Live) -> None:
    answer = ask(live, max_tokens=2.0, seed=7.0, n=1.0, temperature=0)
    assert answer.json()["usage"]["completion_tokens"] == 2
    ids = post(live, "/v1/completions", {"prompt": [5.0, 6.0], "max_tokens": 1})
    assert ids.json()["usage"]["prompt_tokens"] == 2


def test_a_bound_beyond_what_there_is_room_for(live: Live) -> None:
    form = {"type": "regex", "regex": "[a-z]{4000}"}
    answer = ask(live, max_tokens=100_000, response_format=form).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 2048


@pytest.mark.parametrize(
    ("method", "place", "status"),
    [
        ("GET", "/v1/models/", 200),
        ("GET", "/v1/models/tiny/", 200),
        ("HEAD", "/v1/models", 200),
        ("HEAD", "/", 200),
        ("GET", "/health/", 200),
        ("POST", "/v1/chat/completions/", 200),
        ("GET", "/v1/chat/completions", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("GET", "/v1/models/gpt-4o", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/chat/completions", 404),
        ("GET", "/v1", 404),
    ],
)
def test_paths_as_programs_write_them(live: Live, method: str, place: str, status: int) -> None:
    body = {"messages": HELLO, "max_tokens": 1} if method == "POST" else None
    answer = httpx.request(method, live.url + place, json=body, timeout=60)
    assert answer.status_code == status
    if status != 200:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
    if place == "/chat/completions":
        assert "/v1/chat/completions" in error["message"]


def test_answers_of_functions_in_parts(live: Live) -> None:
    called = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}

    def n_tokens(output: Any) -> int:
        items = [{"role": "user", "content": "x"}, called]
        items.append({"type": "function_call_output", "call_id": "c1", "output": output})
        answer = post(live, "/v1/responses", {"input": items, "max_output_tokens": 1})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["input_tokens"])

    assert n_tokens([{"type": "input_text", "text": "seven"}]) == n_tokens("seven")
