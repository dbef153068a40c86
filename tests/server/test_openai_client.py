"""The helpers of OpenAI's own client, which are stricter about what a server says than the plain calls are."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from live_server import Live

HELLO: Any = [{"role": "user", "content": "hello world"}]


class Place(BaseModel):
    kind: Literal["a", "b"]
    ok: bool


OPTIONS: Any = {"model": "tiny", "temperature": 0.0}


def test_parsed_answers(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(messages=HELLO, response_format=Place, max_completion_tokens=60, **OPTIONS)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    response = client.responses.parse(input="hello", text_format=Place, max_output_tokens=60, **OPTIONS)
    assert isinstance(response.output_parsed, Place)


def test_parsed_calls(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(Place)]
    options = {**OPTIONS, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    parsed = client.chat.completions.parse(messages=HELLO, max_completion_tokens=60, **options)
    (call,) = parsed.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Place)


def test_a_stream_of_events(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, max_completion_tokens=40, **OPTIONS)
    text = whole.choices[0].message.content or ""
    options = {**OPTIONS, "max_completion_tokens": 40, "stop": text[20:22]}
    with client.chat.completions.stream(messages=HELLO, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == text[: text.index(text[20:22])]


def test_a_stream_of_calls(client: openai.OpenAI) -> None:
    options = {**OPTIONS, "tools": [openai.pydantic_function_tool(Place)], "tool_choice": "required"}
    options |= {"parallel_tool_calls": False, "max_completion_tokens": 60}
    with client.chat.completions.stream(messages=HELLO, **options) as stream:
        deltas = [e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert "".join(deltas) == call.function.arguments
    assert isinstance(call.function.parsed_arguments, Place)
    assert len(deltas) > 1


def test_a_stream_of_a_response(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "place", "parameters": Place.model_json_schema(), "strict": True}
    choice: Any = {"extra_body": {"text": {"format": {"type": "choice", "choices": ["one", "two"]}}}}
    for extra in (choice, {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}):
        with client.responses.stream(input="hello", max_output_tokens=60, **OPTIONS, **extra) as stream:
            deltas = [e.delta for e in stream if e.type.endswith(("arguments.delta", "output_text.delta"))]
            final = stream.get_final_response()
        if "tools" in extra:
            assert "".join(deltas) == final.output[-1].arguments
            Place(**json.loads(final.output[-1].arguments))
        else:
            assert "".join(deltas) == final.output_text


def test_the_asynchronous_client(live: Live) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            text = ""
            stream = await client.chat.completions.create(
                messages=HELLO, max_completion_tokens=12, stream=True, **OPTIONS
            )
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            return text

    async def several() -> list[str]:
        return list(await asyncio.gather(*(ask() for _ in range(5))))

    assert len(set(asyncio.run(several()))) == 1


def test_completions_of_tokens_and_their_places(client: openai.OpenAI, live: Live) -> None:
    tokenizer = live.engine.model.processor.tokenizer
    options: Any = {**OPTIONS, "max_tokens": 8, "logprobs": 1}
    ids = list(live.engine.model.prepare("hello", raw=True).token_ids)
    of_text = client.completions.create(prompt="hello", **options)
    of_ids = client.completions.create(prompt=ids, **options)
    both = client.completions.create(prompt=[ids, tokenizer.encode("say")], **options)
    assert of_text.choices[0].text == of_ids.choices[0].text == both.choices[0].text
    scores: Any = of_text.choices[0].logprobs
    assert scores.text_offset[0] == 0
    assert scores.text_offset == sorted(scores.text_offset)
    assert len(scores.text_offset) == len(scores.tokens)
    for wrong in ([], [[]], [-1], [10**9], [1 << 80]):
        body = {"prompt": wrong, "max_tokens": 1}
        assert httpx.post(f"{live.url}/v1/completions", json=body, timeout=60).status_code == 400
    with pytest.raises(openai.BadRequestError):
        client.completions.create(prompt=ids, echo=True, suffix="x", **options)
