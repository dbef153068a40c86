"""Between the interfaces and the scheduler: prompts are made in threads, pieces come back to the event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import Request as HttpRequest

from cellmd.api import Model
from cellmd.errors import CellmdError, ContextLengthError
from cellmd.processors.features import Prompt
from cellmd.runtime.job import NOBODY, Client, Job, Request
from cellmd.runtime.result import Piece
from cellmd.runtime.scheduler import Scheduler
from cellmd.server.conversations import Conversations
from cellmd.server.errors import ApiError
from cellmd.server.fetch import Fetcher, Wanted
from cellmd.server.grammar import GrammarConstraint, Grammars
from cellmd.server.settings import ServerSettings

_PREPARING_AT_ONCE = 2

Made = TypeVar("Made")


class Engine:
    """A model and its scheduler, for the interfaces."""

    def __init__(self, model: Model, scheduler: Scheduler, settings: ServerSettings) -> None:
        self.model = model
        self.scheduler = scheduler
        self.settings = settings
        self.created = int(time.time())
        model.processor.limits = settings.media_limits
        text = model.config.text
        self.grammars = Grammars(model.processor.tokenizer, text.vocab_size, text.eos_token_ids[0])
        self.fetcher = Fetcher(settings.max_body_bytes, settings.body_seconds) if settings.allow_urls else None
        self.conversations = Conversations()
        self._recording_seconds = 0.0  # of all recordings that are in memory to be heard
        self._limiter: anyio.CapacityLimiter | None = None

    def fetched(self, wanted: Sequence[Wanted]) -> AbstractAsyncContextManager[Mapping[str, bytes]]:
        """Media by their URLs. Raises ApiError where the server fetches nothing."""
        if self.fetcher is not None:
            return self.fetcher.fetched(wanted)
        if wanted:
            first = wanted[0]
            raise ApiError(
                400,
                f"{first.where}: give the {first.kind} as a data URL; this server fetches nothing",
                code="invalid_media",
                param=first.where,
            )
        return nullcontext({})

    async def in_thread(self, work: Callable[..., Made], *arguments: Any, **options: Any) -> Made:
        """Work that takes long and needs no model, beside the event loop; a few at once."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_PREPARING_AT_ONCE)
        call = functools.partial(work, *arguments, **options)
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)

    def hold_recording(self, seconds: float) -> None:
        """A recording is going to be heard. Raises ApiError if those that are being heard take too much memory."""
        most = self.settings.max_media_seconds
        if self._recording_seconds and self._recording_seconds + seconds > most:
            raise ApiError(503, f"recordings of {most / 3600:g} hours are being heard already", code="overloaded")
        self._recording_seconds += seconds

    def release_recording(self, seconds: float) -> None:
        self._recording_seconds -= seconds

    async def prepare(self, messages: Any, **options: Any) -> Prompt:
        return await self.in_thread(self.model.prepare, messages, **options)

    def requests(
        self,
        prompt: Prompt,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        seed: int | None = None,
        constraint: GrammarConstraint | None = None,
        settings: Mapping[str, Any] | None = None,
        client: Client = NOBODY,
        **options: Any,
    ) -> list[Request]:
        """n requests for answers to one prompt. max_tokens: at most; there may be room for fewer, or the server give
        fewer, which is what None asks for.
        settings: fields of `cellmd.runtime.answering.Settings`."""
        if n > self.settings.max_choices:
            raise ApiError(400, f"n may be at most {self.settings.max_choices}, found {n}", param="n")
        room = min(self.settings.max_answer_tokens, self.model.context - len(prompt))
        if room < 1:
            raise ContextLengthError(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer in {self.model.context} positions"
            )
        max_tokens = room if max_tokens is None else min(max_tokens, room)
        made = []
        for i in range(n):
            own_seed = None if seed is None else (seed + i) % (1 << 63)
            request = self.model.request(prompt, client, max_tokens=max_tokens, seed=own_seed, **options)
            request.settings.constraint = constraint.copy() if constraint is not None else None
            for name, value in (settings or {}).items():
                setattr(request.settings, name, value)
            made.append(request)
        return made

    def answer(self, requests: Sequence[Request]) -> Answers:
        """Begin to answer. Raises BusyError and whatever else `Scheduler.submit` does."""
        return Answers(self.scheduler, requests, self.settings.answer_seconds)


class Answers:
    """Pieces of one or more answers as they come, each with the number of its request. Close it to end them early."""

    def __init__(self, scheduler: Scheduler, requests: Sequence[Request], seconds: float) -> None:
        self._pieces: asyncio.Queue[tuple[int, Piece | CellmdError]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + seconds
        self._seconds = seconds
        self._left = len(requests)
        self._jobs: list[Job] = []
        try:
            for i, request in enumerate(requests):
                self._jobs.append(scheduler.submit(request, functools.partial(self._deliver, i)))
        except BaseException:
            self.close()
            raise

    def _deliver(self, number: int, what: Piece | CellmdError) -> None:
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, (number, what))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        while self._left:
            try:
                number, what = await asyncio.wait_for(self._pieces.get(), self._ends - self._loop.time())
            except TimeoutError:
                raise ApiError(504, f"the answer took longer than {self._seconds:g} s", code="timeout") from None
            if isinstance(what, CellmdError):
                raise what
            self._left -= what.finish_reason is not None
            yield number, what

    def close(self) -> None:
        for job in self._jobs:
            job.cancel()

    async def whole(self, http: HttpRequest) -> list[list[Piece]]:
        """All pieces of each answer. A client that leaves ends them: then what there is by then."""
        pieces: list[list[Piece]] = [[] for _ in self._jobs]

        async def collect() -> None:
            async for number, piece in self:
                pieces[number].append(piece)

        try:
            await while_there(http, collect())
        finally:
            self.close()
        return pieces


async def while_there(http: HttpRequest, work: Coroutine[Any, Any, Made]) -> Made:
    """What the work makes, unless the client leaves before: then ApiError, and the work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(http))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


async def left(http: HttpRequest) -> None:
    """Returns when the client has closed its connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
