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
from cellmd.processors.tool_calls import ToolCall
from cellmd.runtime.logits import Logits
from cellmd.runtime.result import FinishReason, Piece, Timings, TokenScore, Usage
from cellmd.runtime.sampler import Sampler
from cellmd.runtime.stop import StopStrings


class Constraint(Protocol):
    """A form that an answer has to have, reasoning left out."""

    def allowed(self) -> np.ndarray:
        """bool (V,): the tokens that may come next, all False once the form is complete and nothing can follow."""

    def may_end(self) -> bool:
        """Whether the answer has the form as it is."""

    def accept(self, token: int) -> None:
        """The token, one of those allowed, was chosen."""


@dataclass
class Settings:
    """How one answer is made.

    end_ids: tokens that end it. max_tokens: at least 1, reasoning included. logprobs: give each token's; top_logprobs:
    and those of so many likeliest. constraint: the form of the answer. thinking: the prompt asks for reasoning first,
    which the constraint does not bind. reasoning_budget: tokens after which reasoning is closed. max_tool_calls: the
    answer ends after so many.
    """

    end_ids: Collection[int]
    max_tokens: int
    stops: StopStrings = field(default_factory=StopStrings)
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None
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

    def piece(self) -> Piece | None:
        """What can be said now and was not yet; None if that is nothing or the answer has ended."""
        if self.finish is not None or not (self._text or self._reasoning):
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
        if self._settings.stops.found:
            self.finish = "stop_string"
        return self._flushed(self.finish, usage, timings, self._calls)

    def _choose(self, logits: Logits) -> int:
        settings, answer = self._settings, self._answer
        if answer.in_reasoning:
            self.n_reasoning += 1
            over = settings.reasoning_budget is not None and self.n_reasoning > settings.reasoning_budget
            if over and answer.reasoning_end is not None:
                return answer.reasoning_end
            return self._sampler.choose(logits)
        if settings.constraint is None:
            return self._sampler.choose(logits)
        allowed = settings.constraint.allowed()
        if settings.constraint.may_end():
            allowed[list(settings.end_ids)] = True
        opening = answer.reasoning_begin if settings.thinking and self.n_tokens == 0 else None
        if opening is not None:
            allowed[opening] = True
        if not allowed.any():
            return min(settings.end_ids)
        token = self._sampler.choose(logits.changed(np.where(allowed, logits.all(), np.float32(-np.inf))))
        if token != opening and token not in settings.end_ids:
            settings.constraint.accept(token)
        return token

    def _hear(self, token: int) -> None:
        settings = self._settings
        said = self._answer.feed(token)
        self._text += settings.stops.push(said.text)
        self._reasoning += said.reasoning
        self._calls += said.tool_calls
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
            scores=tuple(self._scores),
        )
        self._text = self._reasoning = ""
        self._unsent, self._logprobs, self._scores = [], [], []
        return piece
