"""What generation hands out: pieces as they come, the whole at the end, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cellmd.processors.tool_calls import CallDelta, ToolCall

FinishReason = Literal["stop", "length", "stop_string"]
"""An end token; max_tokens reached; a stop string."""


@dataclass(frozen=True)
class Usage:
    """Tokens. completion_tokens counts the end token; cached_tokens, of the prompt, were in the cache already;
    reasoning_tokens are those of the answer that belong to its reasoning."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cached_tokens": self.cached_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }


@dataclass(frozen=True)
class Timings:
    """Milliseconds by stage: media to features and features to soft tokens (both by kind of media), the prompt, and the
    answer from its first token on. The rates are of tokens that were computed: cached ones do not count."""

    features_ms: dict[str, float] = field(default_factory=dict)
    encoder_ms: dict[str, float] = field(default_factory=dict)
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None

    @classmethod
    def of(
        cls,
        n_prefilled: int,
        n_answered: int,
        *,
        features_ms: dict[str, float],
        encoder_ms: dict[str, float],
        prefill_ms: float,
        decode_ms: float,
    ) -> Timings:
        """n_prefilled: tokens of the prompt that were computed. n_answered: tokens of the answer."""
        return cls(
            features_ms=features_ms,
            encoder_ms=encoder_ms,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
            prefill_tokens_per_s=_rate(n_prefilled, prefill_ms),
            decode_tokens_per_s=_rate(n_answered - 1, decode_ms),
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "features_ms": dict(self.features_ms),
            "encoder_ms": dict(self.encoder_ms),
            "prefill_ms": self.prefill_ms,
            "decode_ms": self.decode_ms,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }


@dataclass(frozen=True)
class TokenScore:
    """A token, its natural log probability, and those of the likeliest tokens at its place, likeliest first.

    spoken: it is part of the text, not of reasoning or of a tool call.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    spoken: bool


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The texts of all pieces put together are the answer; so are their tokens and logprobs.

    The last piece, and no other, has finish_reason, usage, timings and, if there are any, tool_calls. call_deltas: of
    calls, as they are written. scores: of the tokens, if log probabilities were asked for.
    """

    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    call_deltas: tuple[CallDelta, ...] = ()
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Result:
    """A whole answer.

    text: without reasoning, markers, end token and stop string. token_ids: every token, the end token included.
    logprobs: natural logarithms of each token's probability, if they were asked for.
    """

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings

    @classmethod
    def of(cls, pieces: list[Piece]) -> Result:
        """The pieces of one finished answer, put together."""
        last = pieces[-1]
        assert last.finish_reason is not None
        assert last.usage is not None
        assert last.timings is not None
        return cls(
            text="".join(piece.text for piece in pieces),
            reasoning="".join(piece.reasoning for piece in pieces),
            tool_calls=last.tool_calls,
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            logprobs=tuple(value for piece in pieces for value in piece.logprobs),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
        )


def _rate(n_tokens: int, ms: float) -> float | None:
    return n_tokens / ms * 1000.0 if n_tokens > 0 and ms > 0 else None
