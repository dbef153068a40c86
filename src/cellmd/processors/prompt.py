"""From what a user says and shows to token ids with media in their places.

The rule, from transformers' `models/gemma4/processing_gemma4.py`: the chat template writes one placeholder a medium. A
picture's becomes begin, n placeholders, end; a sound's the same for each of its pieces; a film's, for every frame,
`mm:ss` and such a run, separated by spaces. n is the number of soft tokens that the tower will give.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from cellmd.config import ModelConfig
from cellmd.errors import ContainerError, PromptError, UnsupportedModelError
from cellmd.processors.audio import audio_features, split_audio
from cellmd.processors.config import ImageFrontEnd, ProcessorConfig, VideoFrontEnd
from cellmd.processors.decode_audio import decode_audio
from cellmd.processors.decode_image import decode_image
from cellmd.processors.features import AudioFeatures, ImageFeatures, MediaKind, MediaSpan, Prompt
from cellmd.processors.guard import Guard, Segment
from cellmd.processors.image import image_features, with_budget
from cellmd.processors.messages import Conversation, MediaPart, conversation, plain_data
from cellmd.processors.sources import MediaLimits, media_name
from cellmd.processors.template import ChatTemplate
from cellmd.processors.tokenizer import Tokenizer, open_tokenizer
from cellmd.processors.video import timestamp, video_features


@dataclass(frozen=True)
class _Run:
    """One run of soft tokens, and the text before it."""

    lead: str
    features: ImageFeatures | AudioFeatures


class Processor:
    """Makes prompts for one model. Holds no state of a conversation; safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        model: ModelConfig,
        config: ProcessorConfig | None = None,
        limits: MediaLimits | None = None,
    ) -> None:
        """config: None takes Gemma 4's front ends, with the patches that the vision tower wants.

        Raises UnsupportedModelError if a given config does not fit the tower.
        """
        self.tokenizer = tokenizer
        self.config = config or _default_config(model)
        self.limits = limits or MediaLimits()
        self._template = template
        self._model = model
        self._tokens = _MediaTokens(tokenizer, model)
        for name, front_end in (("image", self.config.image), ("video", self.config.video.frame)):
            _check_tower(name, front_end, model)

    @classmethod
    def from_assets(
        cls, assets: Mapping[str, bytes | memoryview], model: ModelConfig, limits: MediaLimits | None = None
    ) -> Processor:
        """From a checkpoint's files by name: vocabulary.bin (a view of the mapped file will do) or tokenizer.json;
        chat_template.jinja or the one inside tokenizer_config.json; processor_config.json or preprocessor_config.json.
        All but the first may be missing. Raises ContainerError for what is missing or malformed.
        """
        tokenizer = open_tokenizer(assets)
        texts = {name: bytes(content) for name, content in assets.items() if name.endswith((".json", ".jinja"))}
        source = _template_source(texts)
        settings = _json_asset(texts, "processor_config.json") or _json_asset(texts, "preprocessor_config.json")
        return cls(
            tokenizer,
            ChatTemplate(source) if source is not None else None,
            model,
            ProcessorConfig.from_dict(settings) if settings else None,
            limits,
        )

    def prepare(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        images: Any = (),
        audio: Any = (),
        videos: Any = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        template_options: Mapping[str, Any] | None = None,
        image_tokens: int | None = None,
        video_frames: int | None = None,
        video_fps: float | None = None,
        video_audio: bool = False,
        raw: bool = False,
    ) -> Prompt:
        """A prompt of text and media, in the order given.

        messages: a string or messages; see `cellmd.processors.messages` for their forms and for where media go.
        images, audio, videos: paths, bytes, file objects, PIL images, arrays; one or a list.
        tools: function declarations (JSON schema) for the template. thinking: let the model reason first.
        template_options: further variables of the template, of those that it reads.
        image_tokens: soft-token budget of each picture: 70, 140, 280, 560 or 1120.
        video_frames, video_fps: frames taken from a film. video_audio: its sound, if it has any, follows its frames.
        raw: `messages` is the prompt's exact text, special tokens and media placeholders included; no template runs.
        Text before which no `<bos>` stands gets one.

        Raises PromptError, MediaDecodeError, MediaLimitError, ArgumentError.
        """
        if raw:
            talk, segments = self._raw(messages, images, audio, videos, video_audio)
        else:
            talk = conversation(messages, images, audio, videos, video_audio=video_audio)
            self._check_towers(talk.media)
            segments = self._rendered(talk, tools, thinking, template_options)
        image_front_end = with_budget(self.config.image, image_tokens)
        features_ms: dict[str, float] = {}
        runs: list[list[_Run]] = []
        for part in talk.media:
            began = time.perf_counter()
            runs.append(self._runs(part, image_front_end, video_frames, video_fps))
            features_ms[part.kind] = features_ms.get(part.kind, 0.0) + (time.perf_counter() - began) * 1000
        return self._assemble(segments, talk.media, runs, features_ms)

    # ---- text ---------------------------------------------------------------------------------------------------

    def _rendered(
        self,
        talk: Conversation,
        tools: Sequence[Mapping[str, Any]] | None,
        thinking: bool,
        options: Mapping[str, Any] | None,
    ) -> list[Segment]:
        if self._template is None:
            raise PromptError("the model has no chat template; give the exact prompt with raw=True")
        declared = plain_data("tools", list(tools)) if tools else None
        chosen = plain_data("template_options", options or {})
        guard = Guard(self.tokenizer.special_tokens.values(), [talk.messages, declared, chosen])
        text = self._model.text
        names = {"bos_token": text.bos_token_id, "eos_token": text.eos_token_ids[0], "pad_token": text.pad_token_id}
        rendered = self._template.render(
            guard.mark(talk.messages),
            tools=guard.mark(declared),
            thinking=thinking,
            options=guard.mark(chosen),
            special_tokens={name: self.tokenizer.token(token_id) or "" for name, token_id in names.items()},
        )
        return guard.segments(rendered)

    def _raw(
        self, text: Any, images: Any, audio: Any, videos: Any, video_audio: bool
    ) -> tuple[Conversation, list[Segment]]:
        if not isinstance(text, str):
            raise PromptError("with raw=True the prompt is a string, not messages")
        begin = self.tokenizer.token(self._model.text.bos_token_id) or ""
        text = text.removeprefix(begin)
        if self._tokens.pattern.search(text):
            found = [{"type": self._tokens.kind_of[match[0]]} for match in self._tokens.pattern.finditer(text)]
            talk = conversation([{"role": "user", "content": found}], images, audio, videos, video_audio=video_audio)
            if video_audio:
                film = self._tokens.placeholder["video"]
                text = text.replace(film, film + self._tokens.placeholder["audio"])
        else:
            talk = conversation(text, images, audio, videos, video_audio=video_audio)
            self._check_towers(talk.media)
            text = "".join(self._tokens.placeholder[part.kind] for part in talk.media) + text
        return talk, [Segment(begin + text, literal=False)]

    # ---- media --------------------------------------------------------------------------------------------------

    def _check_towers(self, media: Sequence[MediaPart]) -> None:
        for part in media:
            if part.kind not in self._tokens.placeholder:
                tower = "audio" if part.kind == "audio" else "vision"
                raise PromptError(f"{media_name(part.medium)}: {part.kind} given, but the model has no {tower} tower")

    def _runs(
        self, part: MediaPart, image_front_end: ImageFrontEnd, video_frames: int | None, video_fps: float | None
    ) -> list[_Run]:
        if part.kind == "image":
            return [_Run("", image_features(decode_image(part.medium, self.limits), image_front_end))]
        if part.kind == "audio":
            return [_Run("", piece) for piece in self._sound(part)]
        film: VideoFrontEnd = self.config.video
        features = video_features(part.medium, film, n_frames=video_frames, fps=video_fps, limits=self.limits)
        leads = [f"{' ' if i else ''}{timestamp(seconds)} " for i, seconds in enumerate(features.times_s)]
        return [_Run(lead, frame) for lead, frame in zip(leads, features.frames, strict=True)]

    def _sound(self, part: MediaPart) -> list[AudioFeatures]:
        front_end = self.config.audio
        if part.sound_of_film and not _may_have_sound(part.medium):
            return []
        waveform = decode_audio(part.medium, self.limits, front_end.sample_rate_hz, optional=part.sound_of_film)
        if part.sound_of_film and len(waveform) < front_end.min_samples:
            return []
        name = media_name(part.medium)
        return [audio_features(piece, front_end, name) for piece in split_audio(waveform, front_end)]

    # ---- both ---------------------------------------------------------------------------------------------------

    def _assemble(
        self,
        segments: Sequence[Segment],
        media: Sequence[MediaPart],
        runs: Sequence[Sequence[_Run]],
        features_ms: dict[str, float],
    ) -> Prompt:
        """Put one placeholder a run into the text, tokenize, and repeat each as often as its features need."""
        tokens = self._tokens
        written = [m[0] for segment in segments if not segment.literal for m in tokens.pattern.finditer(segment.text)]
        places = [tokens.kind_of[placeholder] for placeholder in written]
        if places != [part.kind for part in media]:
            raise PromptError(
                f"the chat template has places for {places or 'no media'}, the messages hold "
                f"{[part.kind for part in media] or 'none'}; media may stand in user messages and tool answers only"
            )
        waiting = iter(runs)
        order = [(part.kind, run) for part, of_part in zip(media, runs, strict=True) for run in of_part]
        ids: list[int] = []
        spans: list[MediaSpan] = []
        pending = iter(order)
        for segment in segments:
            text = segment.text
            if not segment.literal:
                text = tokens.pattern.sub(lambda match: tokens.expand(tokens.kind_of[match[0]], next(waiting)), text)
            for token_id in self.tokenizer.encode(text, special=not segment.literal):
                if token_id not in tokens.placeholder_ids:
                    ids.append(token_id)
                    continue
                kind, run = next(pending)
                spans.append(MediaSpan(kind, len(ids), run.features))
                ids.extend([token_id] * run.features.n_soft_tokens)
        return Prompt(tuple(ids), tuple(spans), features_ms)


class _MediaTokens:
    """The placeholder of each kind of media that the model has, and the tokens around a run of it."""

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig) -> None:
        special = model.special
        ids: dict[MediaKind, tuple[int | None, int | None, int | None]] = {
            "image": (special.image, special.begin_image, special.end_image),
            "audio": (special.audio, special.begin_audio, special.end_audio),
            "video": (special.video, special.begin_image, special.end_image),
        }
        self.placeholder: dict[MediaKind, str] = {}
        self.placeholder_ids: set[int] = set()
        self._around: dict[MediaKind, tuple[str, str]] = {}
        for kind in get_args(MediaKind):
            if None in ids[kind]:
                continue
            names = [tokenizer.token(token_id) for token_id in ids[kind] if token_id is not None]
            if any(name is None or name not in tokenizer.special_tokens.values() for name in names):
                raise ContainerError(f"the tokenizer has no special tokens {ids[kind]}, which stand for {kind}")
            placeholder, begin, end = (str(name) for name in names)
            self.placeholder[kind] = placeholder
            self._around[kind] = begin, end
            self.placeholder_ids.add(ids[kind][0] or 0)
        self.kind_of: dict[str, MediaKind] = {text: kind for kind, text in self.placeholder.items()}
        self.pattern = re.compile("|".join(map(re.escape, self.kind_of)) or "(?!)")

    def expand(self, kind: MediaKind, runs: Sequence[_Run]) -> str:
        begin, end = self._around[kind]
        return "".join(f"{run.lead}{begin}{self.placeholder[kind]}{end}" for run in runs)


def _default_config(model: ModelConfig) -> ProcessorConfig:
    config = ProcessorConfig()
    if model.vision is None:
        return config
    patches = {"patch_size": model.vision.patch_size, "pooling": model.vision.pooling}
    film = replace(config.video, frame=replace(config.video.frame, **patches))
    return replace(config, image=replace(config.image, **patches), video=film)


def _check_tower(name: str, front_end: ImageFrontEnd, model: ModelConfig) -> None:
    tower = model.vision
    if tower is not None and (front_end.patch_size, front_end.pooling) != (tower.patch_size, tower.pooling):
        raise UnsupportedModelError(
            f"the {name} processor cuts patches of {front_end.patch_size} pixels and pools {front_end.pooling}; "
            f"the vision tower wants {tower.patch_size} and {tower.pooling}"
        )


def _may_have_sound(medium: Any) -> bool:
    frames = medium[0] if isinstance(medium, tuple) else medium
    return not hasattr(frames, "shape")


def _json_asset(assets: Mapping[str, bytes], name: str) -> dict[str, Any] | None:
    if name not in assets:
        return None
    try:
        content = json.loads(assets[name])
    except ValueError as error:
        raise ContainerError(f"{name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ContainerError(f"{name} is no JSON object")
    return content


def _template_source(assets: Mapping[str, bytes]) -> str | None:
    if "chat_template.jinja" in assets:
        return assets["chat_template.jinja"].decode("utf-8", errors="replace")
    template = (_json_asset(assets, "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
