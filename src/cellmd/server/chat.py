"""POST /v1/chat/completions."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from cellmd.processors.call_stream import arguments_json
from cellmd.processors.features import MediaKind
from cellmd.processors.tokenizer import Tokenizer
from cellmd.processors.tool_calls import CallDelta, ToolCall
from cellmd.runtime.job import Client, Request
from cellmd.runtime.result import Piece, TokenScore, Usage
from cellmd.server.engine import Answers, Engine
from cellmd.server.errors import ApiError
from cellmd.server.events import DONE, event, event_stream
from cellmd.server.fetch import Wanted
from cellmd.server.grammar import GrammarConstraint
from cellmd.server.replies import (
    Call,
    CallPart,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatFinish,
    ChatMessage,
    ChatUsage,
    Head,
    Logprobs,
    ScoredToken,
    TimingsReply,
    Token,
)
from cellmd.server.schemas import (
    AllowedTools,
    AudioPart,
    AudioUrlPart,
    ChatRequest,
    ChoiceFormat,
    GrammarFormat,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    RefusalPart,
    RegexFormat,
    ResponseFormat,
    Sampled,
    TextPart,
    Tool,
    VideoPart,
    parse,
)

_IMAGE_TOKENS = {"low": 70, "high": 1120}
_SWITCH = "enable_thinking"
_REASONING_TOKENS = {"none": 0, "minimal": 0, "low": 512, "medium": 2048, "high": None, "xhigh": None}


async def chat_completions(http: HttpRequest) -> Response:
    engine: Engine = http.app.state.engine
    asked = parse(await http.body(), ChatRequest)
    answers = engine.answer(await chat_requests(engine, asked, client_of(http, asked)))
    head: Head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": engine.settings.name}
    tokenizer = engine.model.processor.tokenizer
    if asked.stream:
        include_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return event_stream(answers, _chunks(answers, head, tokenizer, asked.n or 1, include_usage, asked.logprobs))
    choices = await answers.whole(http)
    completion: ChatCompletion = {
        **head,
        "object": "chat.completion",
        "choices": [_choice(i, pieces, tokenizer, asked.logprobs) for i, pieces in enumerate(choices)],
        "usage": usage([pieces[-1] for pieces in choices]),
        "timings": timings(choices[0][-1]),
    }
    return JSONResponse(completion)


def client_of(http: HttpRequest, asked: Sampled | None = None) -> Client:
    """Who asks: the address, and there the user that the request names, or else the program."""
    named = (asked.user or asked.safety_identifier) if asked is not None else None
    return Client(http.client.host if http.client else "", named or http.headers.get("user-agent", ""))


async def chat_requests(engine: Engine, asked: ChatRequest, client: Client) -> list[Request]:
    """The requests for a chat's n answers."""
    tools = _tools(asked)
    thinking, budget = _reasoning(asked)
    constraint = await engine.in_thread(_constraint, engine, asked, tools)
    call_form = await engine.in_thread(_call_form, engine, asked, tools)
    async with engine.fetched(_wanted(asked.messages)) as media:
        prompt = await engine.prepare(
            [plain_message(i, message, media) for i, message in enumerate(asked.messages)],
            tools=[{"type": "function", "function": _declared(tool)} for tool in tools] or None,
            thinking=thinking,
            template_options=_template_options(asked),
            image_tokens=asked.image_tokens
            or _image_tokens(asked.messages, engine.model.processor.config.image.max_soft_tokens),
        )
    return engine.requests(
        prompt,
        n=asked.n or 1,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        seed=asked.seed,
        constraint=constraint,
        client=client,
        stop=_stops(asked.stop),
        logprobs=bool(asked.logprobs),
        settings={
            "call_form": call_form,
            "top_logprobs": asked.top_logprobs or 0,
            "thinking": thinking,
            "reasoning_budget": budget,
            "max_tool_calls": 1 if asked.parallel_tool_calls is False else None,
        },
        **asked.sampling(),
    )


# ---- what is asked ------------------------------------------------------------------------------------------


def plain_message(index: int, message: Message, media: Mapping[str, bytes]) -> dict[str, Any]:
    """A message as `cellmd.processors.messages` takes it: media as bytes or data URLs, never as paths. media: those
    that were fetched, by URL."""
    plain = message.model_dump(exclude_none=True, exclude={"content"})
    if isinstance(message.content, str):
        plain["content"] = message.content
    elif message.content is not None:
        plain["content"] = [_plain_part(_where(index, i), part, media) for i, part in enumerate(message.content)]
    return plain


def _where(index: int, part: int) -> str:
    return f"messages.{index}.content.{part}"


def _plain_part(where: str, part: Any, media: Mapping[str, bytes]) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if isinstance(part, AudioPart):
        try:
            return {"type": "audio", "audio": base64.b64decode(part.input_audio.data, validate=True)}
        except (binascii.Error, ValueError):
            raise ApiError(400, f"{where}: the sound is not base64", code="invalid_media", param=where) from None
    kind, url = _linked(part)
    medium: str | bytes = url
    if not url.startswith("data:"):
        medium = media[url]
    return {"type": kind, kind: medium}


def _linked(part: ImagePart | AudioUrlPart | VideoPart) -> tuple[MediaKind, str]:
    """Of what kind a medium is that is given by a URL, and the URL."""
    if isinstance(part, ImagePart):
        return "image", part.image_url.url
    return ("audio", part.audio_url.url) if isinstance(part, AudioUrlPart) else ("video", part.video_url.url)


def _wanted(messages: Sequence[Message]) -> list[Wanted]:
    """What has to be fetched."""
    wanted = []
    for index, message in enumerate(messages):
        for i, part in enumerate(message.content if isinstance(message.content, list) else []):
            if isinstance(part, ImagePart | AudioUrlPart | VideoPart):
                kind, url = _linked(part)
                if not url.startswith("data:"):
                    wanted.append(Wanted(url, kind, _where(index, i)))
    return wanted


def _tools(asked: ChatRequest) -> list[Tool]:
    tools = asked.tools or []
    choice = asked.tool_choice
    if choice == "none":
        return []
    named = [choice] if isinstance(choice, NamedTool) else []
    named = choice.allowed_tools.tools if isinstance(choice, AllowedTools) else named
    known = {tool.function.name for tool in tools}
    unknown = next((one.function.name for one in named if one.function.name not in known), None)
    if unknown is not None:
        raise ApiError(400, f"tool_choice names {unknown!r}, which is none of the tools", param="tool_choice")
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice is required, but there are no tools", param="tool_choice")
    wanted = {one.function.name for one in named}
    return [tool for tool in tools if not named or tool.function.name in wanted]


def _reasoning(asked: ChatRequest) -> tuple[bool, int | None]:
    """Whether to reason, and how many tokens at most."""
    switch = (asked.chat_template_kwargs or {}).get(_SWITCH)
    if not isinstance(switch, bool | None):
        where = f"chat_template_kwargs.{_SWITCH}"
        raise ApiError(400, f"{where} is true or false", code="invalid_value", param=where)
    budget = _REASONING_TOKENS[asked.reasoning_effort] if asked.reasoning_effort else None
    budget = asked.reasoning_budget if asked.reasoning_budget is not None else budget
    if budget == 0 or switch is False:
        return False, 0
    return bool(switch or asked.reasoning_effort or budget), budget


def _template_options(asked: ChatRequest) -> dict[str, Any]:
    """What is for the chat template beside the switch for reasoning, which has further sources."""
    return {key: value for key, value in (asked.chat_template_kwargs or {}).items() if key != _SWITCH}


def _must_call(asked: ChatRequest) -> bool:
    choice = asked.tool_choice
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, NamedTool)


def _constraint(engine: Engine, asked: ChatRequest, tools: Sequence[Tool]) -> GrammarConstraint | None:
    if _must_call(asked):
        return engine.grammars.tool_calls(_functions(tools), several=asked.parallel_tool_calls is not False)
    return constraint_of(engine, asked.response_format)


def _call_form(engine: Engine, asked: ChatRequest, tools: Sequence[Tool]) -> GrammarConstraint | None:
    """The form of each call that the model may make."""
    if _must_call(asked) or not tools:
        return None
    return engine.grammars.tool_calls(_functions(tools), several=False, strict=False)


def _declared(tool: Tool) -> dict[str, Any]:
    """A function as the model is shown it."""
    return tool.function.model_dump(exclude_none=True, exclude={"strict"})


def _functions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [tool.function.model_dump(exclude_none=True) for tool in tools]


def constraint_of(engine: Engine, form: ResponseFormat | None) -> GrammarConstraint | None:
    grammars = engine.grammars
    if isinstance(form, JsonObjectFormat):
        return grammars.json_schema({"type": "object"})
    if isinstance(form, JsonSchemaFormat):
        return grammars.json_schema(form.json_schema.schema_)
    if isinstance(form, RegexFormat):
        return grammars.regex(form.regex)
    if isinstance(form, ChoiceFormat):
        return grammars.choice(form.choices)
    return grammars.lark(form.grammar) if isinstance(form, GrammarFormat) else None


def _image_tokens(messages: Sequence[Message], own: int) -> int | None:
    """The budget that the pictures' details ask for: the largest, as a prompt has one for all its pictures.
    own: the model's own, which auto means."""
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    budgets = [_IMAGE_TOKENS.get(part.image_url.detail, own) for part in parts if isinstance(part, ImagePart)]
    return max(budgets, default=None)


def _stops(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []


# ---- what is answered ---------------------------------------------------------------------------------------


def _shown_calls(calls: Sequence[ToolCall]) -> list[Call]:
    """A choice's tool calls as the interface shows them."""
    return [
        {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": arguments_json(call)}}
        for call in calls
    ]


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _shown_delta(delta: CallDelta) -> CallPart:
    if delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": call_id(),
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


def finish_reason(last: Piece) -> ChatFinish:
    return "tool_calls" if last.tool_calls and last.tool_calls[-1].finished else text_finish(last)


def text_finish(last: Piece) -> Literal["stop", "length"]:
    return "length" if last.finish_reason == "length" else "stop"


def usage(lasts: Sequence[Piece]) -> ChatUsage:
    """Of all answers to one prompt, which is counted once."""
    each = [piece.usage or Usage(0, 0) for piece in lasts]
    completion = sum(one.completion_tokens for one in each)
    prompt = each[0].prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": each[0].cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(one.reasoning_tokens for one in each)},
    }


def timings(last: Piece) -> TimingsReply:
    return last.timings.as_dict() if last.timings is not None else {}


def logprobs(scores: Sequence[TokenScore], tokenizer: Tokenizer) -> Logprobs:
    content: list[ScoredToken] = []
    for score in scores:
        if score.spoken:
            top = [_token(token, value, tokenizer) for token, value in score.top]
            content.append({**_token(score.token_id, score.logprob, tokenizer), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _token(token: int, value: float, tokenizer: Tokenizer) -> Token:
    name = tokenizer.token(token) or ""
    raw = (
        bytes([int(name[3:5], 16)])
        if token in tokenizer.byte_ids
        else tokenizer.decode([token], skip_special=False).encode()
    )
    return {"token": raw.decode(errors="replace"), "logprob": max(value, -9999.0), "bytes": list(raw)}


def _choice(index: int, pieces: Sequence[Piece], tokenizer: Tokenizer, with_logprobs: bool | None) -> ChatChoice:
    last = pieces[-1]
    text, reasoning = "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces)
    message: ChatMessage = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if last.tool_calls:
        message["content"] = text or None
        message["tool_calls"] = _shown_calls(last.tool_calls)
    scores = [score for piece in pieces for score in piece.scores]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs(scores, tokenizer) if with_logprobs else None,
        "finish_reason": finish_reason(last),
    }


async def _chunks(
    answers: Answers,
    head: Head,
    tokenizer: Tokenizer,
    n: int,
    include_usage: bool,
    with_logprobs: bool | None,
) -> AsyncIterator[str]:
    def chunk(*choices: ChatChunkChoice) -> ChatChunk:
        return {
            "id": head["id"],
            "created": head["created"],
            "model": head["model"],
            "object": "chat.completion.chunk",
            "choices": list(choices),
        }

    def part(index: int, delta: ChatDelta, last: Piece | None = None, scores: Logprobs | None = None) -> str:
        finish = finish_reason(last) if last is not None else None
        one = chunk({"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish})
        if include_usage:
            one["usage"] = None
        if last is not None:
            one["timings"] = timings(last)
        return event(one)

    for index in range(n):
        yield part(index, {"role": "assistant", "content": ""})
    lasts: list[Piece] = []
    async for index, piece in answers:
        scores = logprobs(piece.scores, tokenizer) if with_logprobs else None
        delta: ChatDelta = {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.text or (scores and scores["content"]):
            delta["content"] = piece.text
        if piece.call_deltas:
            delta["tool_calls"] = [_shown_delta(one) for one in piece.call_deltas]
        if delta:
            yield part(index, delta, scores=scores)
        if piece.finish_reason is not None:
            lasts.append(piece)
            yield part(index, {}, piece)
    if include_usage:
        counted = chunk()
        counted["usage"] = usage(lasts)
        yield event(counted)
    yield DONE
