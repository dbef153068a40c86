"""POST /v1/completions: a text goes on; no chat template runs."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from cellmd.processors.features import Prompt
from cellmd.processors.tokenizer import Tokenizer
from cellmd.runtime.job import Client, Request
from cellmd.runtime.result import Piece, TokenScore
from cellmd.server.chat import client_of, text_finish, usage
from cellmd.server.engine import Answers, Engine
from cellmd.server.errors import ApiError
from cellmd.server.events import DONE, event, event_stream
from cellmd.server.replies import Head, TextChoice, TextChunk, TextCompletion, TextLogprobs, TokenCounts
from cellmd.server.schemas import CompletionRequest, parse

_MAX_TOKENS = 16  # OpenAI's own default


async def completions(http: HttpRequest) -> Response:
    engine: Engine = http.app.state.engine
    asked = parse(await http.body(), CompletionRequest)
    prompts = await _prompts(engine, asked)
    answers = engine.answer(_requests(engine, asked, prompts, client_of(http, asked)))
    head: Head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": engine.settings.name}
    tokenizer = engine.model.processor.tokenizer
    echoed = [_echo(tokenizer, one) if asked.echo else "" for one in _listed(asked.prompt) for _ in range(asked.n or 1)]
    if asked.stream:
        return event_stream(answers, _chunks(answers, head, tokenizer, echoed, asked))
    choices = []
    whole = await answers.whole(http)
    for i, pieces in enumerate(whole):
        text = echoed[i] + "".join(piece.text for piece in pieces)
        scores = [score for piece in pieces for score in piece.scores]
        ended = text_finish(pieces[-1])
        choices.append(_choice(i, text, ended, scores, tokenizer, asked.logprobs, len(echoed[i])))
    completion: TextCompletion = {
        **head,
        "object": "text_completion",
        "choices": choices,
        "usage": _usage(whole, asked.n or 1),
    }
    return JSONResponse(completion)


def _listed(prompt: str | list[Any]) -> list[str | list[int]]:
    """The prompts: texts or token ids, of which there may be several."""
    return prompt if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int)) else [prompt]


def _echo(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False)


async def _prompts(engine: Engine, asked: CompletionRequest) -> list[Prompt]:
    listed = _listed(asked.prompt)
    if not 1 <= len(listed) * (asked.n or 1) <= engine.settings.max_choices:
        raise ApiError(400, f"prompts times n must be 1..{engine.settings.max_choices}", param="prompt")
    return [
        await engine.prepare(one, raw=True)
        if isinstance(one, str)
        else _of_ids(one, engine.model.config.text.vocab_size)
        for one in listed
    ]


def _of_ids(ids: list[int], n_vocab: int) -> Prompt:
    """A prompt of tokens. Raises ApiError for ids that are none, before anything counts with them."""
    if any(not 0 <= token < n_vocab for token in ids):
        raise ApiError(400, f"prompt: token ids are 0..{n_vocab - 1}", code="invalid_value", param="prompt")
    return Prompt(tuple(ids))


def _requests(engine: Engine, asked: CompletionRequest, prompts: Sequence[Prompt], client: Client) -> list[Request]:
    requests: list[Request] = []
    for prompt in prompts:
        requests += engine.requests(
            prompt,
            n=asked.n or 1,
            max_tokens=asked.max_tokens or _MAX_TOKENS,
            seed=asked.seed,
            client=client,
            stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
            logprobs=asked.logprobs is not None,
            settings={"top_logprobs": asked.logprobs or 0},
            **asked.sampling(),
        )
    return requests


def _usage(whole: Sequence[Sequence[Piece]], n: int) -> TokenCounts:
    of_prompts = [usage([pieces[-1] for pieces in whole[i : i + n]]) for i in range(0, len(whole), n)]
    return {
        "prompt_tokens": sum(one["prompt_tokens"] for one in of_prompts),
        "completion_tokens": sum(one["completion_tokens"] for one in of_prompts),
        "total_tokens": sum(one["total_tokens"] for one in of_prompts),
    }


def _choice(
    index: int,
    text: str,
    finish: Literal["stop", "length"] | None,
    scores: Sequence[TokenScore],
    tokenizer: Tokenizer,
    top: int | None,
    offset: int = 0,
) -> TextChoice:
    """offset: where the first of the tokens begins in the choice's text."""
    shown: TextLogprobs | None = None
    if top is not None:

        def name(token: int) -> str:
            return tokenizer.decode([token], skip_special=False)

        tokens = [name(score.token_id) for score in scores]
        shown = {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{name(token): value for token, value in score.top} for score in scores],
            "text_offset": list(itertools.accumulate(map(len, tokens), initial=offset))[: len(tokens)],
        }
    return {"index": index, "text": text, "logprobs": shown, "finish_reason": finish}


async def _chunks(
    answers: Answers, head: Head, tokenizer: Tokenizer, echoed: Sequence[str], asked: CompletionRequest
) -> AsyncIterator[str]:
    def chunk(*choices: TextChoice) -> TextChunk:
        return {
            "id": head["id"],
            "created": head["created"],
            "model": head["model"],
            "object": "text_completion",
            "choices": list(choices),
        }

    for i, text in enumerate(echoed):
        if text:
            yield event(chunk(_choice(i, text, None, [], tokenizer, None)))
    lasts: dict[int, list[Piece]] = {i: [] for i in range(len(echoed))}
    offsets = [len(text) for text in echoed]
    async for i, piece in answers:
        finish = text_finish(piece) if piece.finish_reason is not None else None
        choice = _choice(i, piece.text, finish, piece.scores, tokenizer, asked.logprobs, offsets[i])
        offsets[i] += sum(map(len, choice["logprobs"]["tokens"])) if choice["logprobs"] else 0
        yield event(chunk(choice))
        if finish:
            lasts[i].append(piece)
    if asked.stream_options is not None and asked.stream_options.include_usage:
        counted = chunk()
        counted["usage"] = _usage([lasts[i] for i in sorted(lasts)], asked.n or 1)
        yield event(counted)
    yield DONE
