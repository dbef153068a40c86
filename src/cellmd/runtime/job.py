"""A request for an answer, and what is known of it while it is being made by the scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from cellmd.errors import CellmdError
from cellmd.processors.features import MediaSpan, Prompt
from cellmd.processors.output import AnswerDecoder
from cellmd.runtime.answering import Answering, Settings
from cellmd.runtime.batch import Sequence
from cellmd.runtime.result import Piece
from cellmd.runtime.reuse import identity
from cellmd.runtime.sampler import Sampler
from cellmd.runtime.saved import Loaded

Deliver = Callable[[Piece | CellmdError], None]
"""Takes each piece of an answer as it comes, or the error that ended it; called on the scheduler's thread, so it must
return at once."""


class Client(NamedTuple):
    """Who asks. Waiting requests take turns by address, and those of one address by name."""

    address: str = ""
    name: str = ""


NOBODY = Client()


@dataclass(frozen=True)
class Request:
    """One answer to be made. sampler and answer belong to it alone."""

    prompt: Prompt
    sampler: Sampler
    answer: AnswerDecoder
    settings: Settings
    client: Client = NOBODY


@dataclass
class Counts:
    """What has been done so far, and what is going on now (waiting, running)."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    rows: int = 0
    waiting: int = 0
    running: int = 0
    first_token_seconds: float = 0.0


class Job:
    """A request that was taken in. `cancel` ends it within a step; nothing is delivered after that."""

    def __init__(self, request: Request, deliver: Deliver, wake: Callable[[], None]) -> None:
        self.request = request
        self.cancelled = False
        self._deliver = deliver
        self._wake = wake
        prompt = request.prompt
        self.keys, self.digests = identity(prompt)
        self.answering = Answering(request.sampler, request.answer, request.settings)
        self.sequence = Sequence(0, [])
        self.leader: Job | None = None  # whose slot the first positions will be copied from
        self.loading: tuple[str, Future[Loaded | None]] | None = None  # from disk, into its slot
        self.n_shared = 0  # positions that will be there once the leader is read so far, or all is loaded
        self.to_encode: list[tuple[MediaSpan, bytes]] = []
        self.n_cached = 0
        self.encoder_ms: dict[str, float] = {}
        self.asked = time.perf_counter()
        self.began = self.answered = 0.0

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    def deliver(self, what: Piece | CellmdError) -> None:
        if not self.cancelled:
            self._deliver(what)

    def start_at(self, n_kept: int) -> None:
        """The first n_kept positions are in the job's slot; the rest is to be run."""
        prompt = self.request.prompt
        self.leader = self.loading = None
        self.sequence.n_done = self.n_cached = n_kept
        spans = zip(prompt.media, self.digests, strict=True)
        self.to_encode = [(span, d) for span, d in spans if span.start + span.features.n_soft_tokens > n_kept]

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its beginning."""
        return self.leader is not None or self.loading is not None

    @property
    def n_prompt_left(self) -> int:
        return 0 if self.answering.n_tokens else self.sequence.n_pending
