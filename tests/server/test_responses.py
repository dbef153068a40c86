"""OpenAI's Responses, as its own client uses them; models and metrics."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from cellmd.server.conversations import Conversation, Conversations
from live_server import Live

LOOK: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"place": {}}}}


def create(client: openai.OpenAI, **options: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "temperature": 0.0, "max_output_tokens": 12, **options})


def test_a_response_says_what_a_chat_says(client: openai.OpenAI) -> None:
    response = create(client, input="hello world")
    messages: Any = [{"role": "user", "content": "hello world"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0.0, max_completion_tokens=12)
    assert response.output_text == chat.choices[0].message.content
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_events_tell_the_same(client: openai.OpenAI) -> None:
    whole = create(client, input="hello world", instructions="say one")
    events = list(create(client, input="hello world", instructions="say one", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert [item.type for item in events[-1].response.output] == ["message"]


def test_functions_are_called_and_answered(client: openai.OpenAI) -> None:
    options = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 60}
    for seed in range(100):  # the random model has to begin a call; in time it ends some
        response = create(client, input="hello", **options, extra_body={"seed": seed}, temperature=1.0)
        call = response.output[-1]
        if call.type == "function_call":
            break
    assert (call.type, call.name) == ("function_call", "look")
    json.loads(call.arguments)
    events = list(create(client, input="hello", **options, extra_body={"seed": seed}, temperature=1.0, stream=True))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert events[-1].response.output[-1].arguments == call.arguments
    assert [event.sequence_number for event in events] == list(range(len(events)))
    turns: Any = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "a wall"},
    ]
    assert create(client, input=turns, tools=[LOOK]).output_text


def test_only_some_functions_are_allowed(client: openai.OpenAI) -> None:
    other: Any = {"type": "function", "name": "other"}
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [other]}
    response = create(client, input="hello", tools=[LOOK, other], tool_choice=choice, max_output_tokens=40)
    assert {item.name for item in response.output if item.type == "function_call"} == {"other"}


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert json.loads(create(client, input="hello", text=form).output_text).keys() == {"a"}


def test_log_probabilities(client: openai.OpenAI) -> None:
    options: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = create(client, input="hello world", **options)
    scores = response.output[0].content[0].logprobs
    assert len(scores) == 12
    assert all(len(score.top_logprobs) == 2 and score.logprob <= 0 for score in scores)
    events = list(create(client, input="hello world", **options, stream=True))
    told = [score for event in events if event.type == "response.output_text.delta" for score in event.logprobs]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert [s.token for s in told] == [s.token for s in done.logprobs] == [s.token for s in scores]
    assert len(events[-1].response.output[0].content[0].logprobs) == 12
    assert create(client, input="hello world").output[0].content[0].logprobs == []


def test_biases_and_penalties(client: openai.OpenAI, live: Live) -> None:
    (token,) = live.engine.model.processor.tokenizer.encode("a")
    extra = {"logit_bias": {str(token): 100}, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    assert create(client, input="hello", max_output_tokens=4, extra_body=extra).output_text == "aaaa"


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_goes_on_from_an_earlier_one(client: openai.OpenAI, stream: bool) -> None:
    def said(**options: Any) -> Any:
        if not stream:
            return create(client, **options)
        return list(create(client, **options, stream=True))[-1].response

    first = said(input="hello", instructions="say one")
    second = said(input="world", previous_response_id=first.id, instructions="say two")
    third = said(input="again", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    turns: Any = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "world"},
    ]
    same = create(client, input=turns, instructions="say two")  # instructions are of one response
    assert (second.output_text, second.usage.input_tokens) == (same.output_text, same.usage.input_tokens)
    turns += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "again"}]
    assert third.output_text == create(client, input=turns).output_text


def test_calls_are_answered_by_the_id_of_their_response(client: openai.OpenAI) -> None:
    options: Any = {"tools": [LOOK], "max_output_tokens": 60}
    for seed in range(100):
        first = create(
            client, input="hello", **options, tool_choice="required", extra_body={"seed": seed}, temperature=1
        )
        call = first.output[-1]
        if call.type == "function_call" and call.status == "completed":
            break
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "a wall"}]
    assert create(client, input=output, previous_response_id=first.id, **options).output_text


def test_kept_responses_are_bounded_and_forgotten(client: openai.OpenAI, live: Live) -> None:
    kept = create(client, input="hello")
    assert client.responses.retrieve(kept.id).output_text == kept.output_text
    client.responses.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(kept.id)
    for unknown in (kept.id, "resp_1", create(client, input="hello", store=False).id):
        with pytest.raises(openai.BadRequestError) as error:
            create(client, input="hello", previous_response_id=unknown)
        assert error.value.code == "previous_response_not_found"
        assert error.value.param == "previous_response_id"


def test_what_is_kept_is_bounded() -> None:
    kept = Conversations(most=3, most_bytes=10_000)
    for i in range(5):
        kept.keep(Conversation([{"content": "x" * 100}], {"id": str(i)}))
        kept.get("2")
    assert [kept.get(str(i)) is not None for i in range(5)] == [False, False, True, True, True]
    kept.keep(Conversation([{"content": "x" * 20_000}], {"id": "large"}))
    assert kept.get("large") is None
    kept.keep(Conversation([{"content": "x" * 9_000}], {"id": "rather large"}))
    assert kept.get("rather large") is not None
    assert kept.get("3") is None
    assert kept.forget("rather large")
    assert not kept.forget("rather large")
    kept.keep(Conversation([{"content": "x" * 9_000}], {"id": "another"}))
    assert kept.get("another") is not None


@pytest.mark.parametrize(
    "change",
    [
        {"input": []},
        {"input": [{"type": "computer_call"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/x"}]}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}]},
        {"tools": [LOOK], "tool_choice": {"type": "web_search"}},
        {"tools": [LOOK], "tool_choice": {"type": "function"}},
        {"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"name": "look"}]}},
        {"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": "look"}},
    ],
)
def test_what_is_not_supported_is_refused(live: Live, change: dict[str, Any]) -> None:
    answer = httpx.post(
        f"{live.url}/v1/responses", json={"input": "hello", "max_output_tokens": 1, **change}, timeout=60
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


# ---- what describes the server --------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "cellmd"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_metrics(live: Live) -> None:
    def values() -> dict[str, float]:
        lines = httpx.get(f"{live.url}/metrics").text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}

    own = 'cellmd_http_answers_total{path="/metrics",status="200"}'
    first, second = values(), values()
    assert first["cellmd_slots"] == 3
    assert first["cellmd_running"] == 0
    assert second[own] == first.get(own, 0) + 1
    httpx.get(f"{live.url}/a/path/nobody/knows")
    assert not any("nobody" in name for name in values())
