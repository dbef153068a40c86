"""What may be said of a prompt and of its answer: the types of the arguments of `cellmd.api`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypedDict

from cellmd.runtime.result import Piece

Messages = str | Sequence[Mapping[str, Any]]
"""A text (one user message), or messages `{"role": ..., "content": ...}`; `docs/api.md` has their forms."""

Pieces = Generator[Piece, None, None]
"""An answer as it comes; `close()` ends it early."""


class PrepareOptions(TypedDict, total=False):
    """How a prompt is made. Media: paths, bytes, file objects, PIL images, arrays; one or a list.

    images, audio, videos: in the order in which the messages have places for them; before the text of a plain string.
        Sound of more than 30 s is cut into pieces.
    system: a system message before the others. tools: function declarations (JSON schema).
    thinking: let the model reason first. template_options: further variables of the chat template.
    raw: the text is the exact prompt, special tokens and all.
    image_tokens: soft tokens a picture may take: 70, 140, 280, 560 or 1120.
    video_frames, video_fps: how many frames of a film. video_audio: its sound follows them.
    """

    images: Any
    audio: Any
    videos: Any
    system: str | None
    tools: Sequence[Mapping[str, Any]] | None
    thinking: bool
    template_options: Mapping[str, Any]
    raw: bool
    image_tokens: int | None
    video_frames: int | None
    video_fps: float | None
    video_audio: bool


class GenerateOptions(PrepareOptions, total=False):
    """How an answer is made; what is None comes from the file's generation config.

    max_tokens: of the answer, reasoning included. temperature 0 always takes the likeliest token.
    top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias (by token id), seed: see
    `cellmd.runtime.sampler`. The same seed gives the same answer.
    stop: strings that end the answer; they are not part of it. logprobs: give each token's log probability.
    """

    max_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str]
    logprobs: bool
