"""One answer, token by token: what is chosen from logits, what may be said of it, and when it ends.

It knows nothing of caches or batches: whoever runs the model gives it the logits after the last token and runs the
token that it chose. `generate` does so for one sequence, the scheduler for many at once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cellmd.processors.output import AnswerDecoder
from cellmd.processors.tool_calls import CallDelta, ToolCall
from cellmd.runtime.logits import Logits
from cellmd.runtime.result import FinishReason, Piece, Timings, TokenScore, Usage
from cellmd.runtime.sampler import Draw, Sampler
from cellmd.runtime.stop import StopStrings


class Constraint(Protocol):
    """A form that an answer has to have, reasoning left out."""

    def allowed(self) -> np.ndarray:
        """bool (V,): the tokens that may come next, all False once the form is complete and nothing can follow."""

    def may_end(self) -> bool:
        """Whether the answer has the form as it is."""

    def accept(self, token: int) -> None:
        """The token, one of those allowed, was chosen."""

    def copy(self) -> Constraint:
        """Another one that stands where this one stands."""


@dataclass
class Settings:
    """How one answer is made.

    end_ids: tokens that end it. max_tokens: at least 1, reasoning included. logprobs: give each token's; top_logprobs:
    and those of so many likeliest. constraint: the form of the answer. call_form: the form of each tool call; if there
    is a constraint as well, calls may stand in the answer's place. thinking: the prompt asks for reasoning first, which
    the constraint does not bind. reasoning_budget: tokens after which reasoning is closed. max_tool_calls: the answer
    ends after so many.
    """

    end_ids: Collection[int]
    max_tokens: int
    stops: StopStrings = field(default_factory=StopStrings)
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None
    call_form: Constraint | None = None
    thinking: bool = False
    reasoning_budget: int | None = None
    max_tool_calls: int | None = None


class Answering:
    """State of one answer. Once `finish` is set no more logits are taken and `last` gives the closing piece."""

    def __init__(self, sampler: Sampler, answer: AnswerDecoder, settings: Settings) -> None:
        self.finish: FinishReason | None = None
        self.n_tokens = 0
        self._sampler = sampler
        self._answer = answer
        self._settings = settings
        self.n_reasoning = 0
        self._calls: tuple[ToolCall, ...] = ()
        self._deltas: tuple[CallDelta, ...] = ()
        self._call: Constraint | None = None  # of the call that is being written
        self._formed = False  # whether the answer has begun to take its form
        self._text = self._reasoning = ""
        self._unsent: list[int] = []
        self._logprobs: list[float] = []
        self._scores: list[TokenScore] = []

    def take(self, logits: Logits) -> int:
        """Choose the next token and see whether it ends the answer."""
        settings = self._settings
        was_text = self._answer.in_text
        token = self._choose(logits)
        self.n_tokens += 1
        self._unsent.append(token)
        if token in settings.end_ids:
            self.finish = "stop"
        else:
            self._hear(token)
        if settings.logprobs:
            self._score(logits, token, spoken=was_text and self._answer.in_text and self.finish != "stop")
        return token

    def foreseen(self) -> tuple[Draw, Draw] | None:
        """How the next two tokens will be chosen, as far as can be told now; None if that cannot be told, or there will
        not be two."""
        in_form = self._settings.constraint is not None or self._call is not None
        if in_form or self.n_tokens + 2 > self._settings.max_tokens:
            return None
        return self._sampler.foreseen()

    def piece(self) -> Piece | None:
        """What can be said now and was not yet; None if that is nothing or the answer has ended."""
        if self.finish is not None or not (self._text or self._reasoning or self._deltas):
            return None
        return self._flushed()

    def usage(self, n_prompt: int, n_cached: int) -> Usage:
        """What was used so far, for a prompt of n_prompt tokens of which n_cached needed no computing."""
        return Usage(n_prompt, self.n_tokens, n_cached, self.n_reasoning)

    def last(self, usage: Usage, timings: Timings) -> Piece:
        """The closing piece, with what was held back."""
        held = self._answer.flush()
        self._text += self._settings.stops.push(held.text) + self._settings.stops.finish()
        self._reasoning += held.reasoning
        self._calls += held.tool_calls
        self._deltas += held.call_deltas
        if self._settings.stops.found:
            self.finish = "stop_string"
        return self._flushed(self.finish, usage, timings, self._calls)

    def _choose(self, logits: Logits) -> int:
        settings, answer = self._settings, self._answer
        if answer.in_call and self._call is not None:
            return self._within(self._call, logits)
        if answer.in_reasoning:
            self.n_reasoning += 1
            over = settings.reasoning_budget is not None and self.n_reasoning > settings.reasoning_budget
            if over and answer.reasoning_end is not None:
                return answer.reasoning_end
            token = self._sampler.choose(logits)
        elif settings.constraint is None:
            token = self._sampler.choose(logits)
        else:
            token = self._within(settings.constraint, logits, self._openings())
            self._formed = self._formed or token not in self._openings()
        if settings.call_form is not None and token == answer.call_begin:
            self._call = settings.call_form.copy()
            self._call.accept(token)
        return token

    def _openings(self) -> set[int]:
        """Tokens that may come before the answer takes its form: those that open reasoning or a call, and once there is
        a call, those that end the answer."""
        settings, answer = self._settings, self._answer
        openings: set[int] = set()
        if settings.thinking and self.n_tokens == 0 and answer.reasoning_begin is not None:
            openings.add(answer.reasoning_begin)
        if settings.call_form is not None and not self._formed:
            openings |= {answer.call_begin} if answer.call_begin is not None else set()
            openings |= set(settings.end_ids) if self._calls else set()
        return openings

    def _within(self, form: Constraint, logits: Logits, openings: Collection[int] = ()) -> int:
        """The next token of a form, or one of those that may come instead."""
        ends = self._settings.end_ids
        allowed = form.allowed()
        if form.may_end():
            allowed[list(ends)] = True
        allowed[list(openings)] = True
        if not allowed.any():
            return min(ends)
        token = self._sampler.choose(logits.changed(np.where(allowed, logits.all(), np.float32(-np.inf))))
        if token not in openings and token not in ends:
            form.accept(token)
        return token

    def _hear(self, token: int) -> None:
        settings = self._settings
        said = self._answer.feed(token)
        self._text += settings.stops.push(said.text)
        self._reasoning += said.reasoning
        self._calls += said.tool_calls
        self._deltas += said.call_deltas
        if settings.stops.found:
            self.finish = "stop_string"
        elif settings.max_tool_calls is not None and len(self._calls) >= settings.max_tool_calls:
            self.finish = "stop"
        elif self.n_tokens == settings.max_tokens:
            self.finish = "length"

    def _score(self, logits: Logits, token: int, *, spoken: bool) -> None:
        value = logits.logprob(token)
        self._logprobs.append(value)
        if self._settings.top_logprobs or spoken:
            top = logits.top_logprobs(self._settings.top_logprobs)
            self._scores.append(TokenScore(token, value, top, spoken))

    def _flushed(
        self,
        finish: FinishReason | None = None,
        usage: Usage | None = None,
        timings: Timings | None = None,
        calls: tuple[ToolCall, ...] = (),
    ) -> Piece:
        piece = Piece(
            text=self._text,
            reasoning=self._reasoning,
            token_ids=tuple(self._unsent),
            logprobs=tuple(self._logprobs),
            finish_reason=finish,
            usage=usage,
            timings=timings,
            tool_calls=calls,
            call_deltas=self._deltas,
            scores=tuple(self._scores),
        )
        self._text = self._reasoning = ""
        self._deltas = ()
        self._unsent, self._logprobs, self._scores = [], [], []
        return piece
