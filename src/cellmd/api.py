"""Loading a file and talking with the model in it. See `docs/api.md`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike
from types import TracebackType
from typing import Any, Unpack

import numpy as np

from cellmd import __version__
from cellmd.backends import create
from cellmd.backends.ops import Ops
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.convert.tensor_map import expected_tensors
from cellmd.errors import ArgumentError, BackendError, ContextLengthError, LayoutError
from cellmd.models.gemma4 import Gemma4
from cellmd.options import GenerateOptions, Messages, Pieces, PrepareOptions
from cellmd.processors.features import MediaKind, Prompt
from cellmd.processors.messages import media_list
from cellmd.processors.output import AnswerDecoder
from cellmd.processors.prompt import Processor
from cellmd.runtime.answering import Settings
from cellmd.runtime.batch import Sequence as Running
from cellmd.runtime.defaults import GenerationDefaults
from cellmd.runtime.generate import Runner, common_prefix, generate
from cellmd.runtime.job import NOBODY, Client, Request
from cellmd.runtime.kv_cache import KvCache, free_memory_bytes
from cellmd.runtime.result import Piece, Result
from cellmd.runtime.sampler import Sampler, Sampling
from cellmd.runtime.saved import Saved
from cellmd.runtime.scheduler import Scheduler
from cellmd.runtime.stop import StopStrings

DEFAULT_MAX_TOKENS = 512

_MOST_AT_ONCE = 512
"""Slots of a scheduler, and requests that may wait for one."""

_SAMPLING = tuple(option.name for option in fields(Sampling))

DEFAULT_CACHE_BYTES = 4 << 30
"""Of what a scheduler keeps on disk."""


def load(
    path: str | PathLike[str],
    backend: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
) -> Model:
    """Open a .cellmd file and bind its weights, which stay in the file and are read as they are used.

    backend: "auto" for the best that can run here, "cuda", "cpu" or "reference". threads: None for all cores.
    context: the longest conversation in tokens; None for the model's own length. Memory is taken as it is used.
    kv_cache: how the backend "cpu" keeps keys and values: "f16" (None), "f32" in twice the memory, "i8" in half of it.
    Raises ContainerError for the file, BackendError for the backend, ArgumentError for the rest.
    """
    for name, value in (("threads", threads), ("context", context)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ArgumentError(f"{name} must be a whole number of at least 1 or None, found {value!r}")
    ops = create(backend, threads, kv_cache)
    container = Container.open(path)
    try:
        return Model(container, ops, context)
    except BaseException:
        container.close()
        raise


class Model:
    """A loaded model; a context manager. It answers one prompt at a time.

    config: the model's facts. context: positions a conversation may have. backend: the name of the one it runs on.
    """

    def __init__(self, container: Container, ops: Ops, context: int | None = None) -> None:
        self.path = container.path
        self.backend = ops.name
        self.config = ModelConfig.from_dict(container.config)
        _check_tensors(container, self.config)
        limit = self.config.text.context_length
        if context is not None and context > limit:
            raise ArgumentError(f"context must be at most {limit}, the model's own, found {context}")
        self.context = context or limit
        self._container: Container | None = container
        self._ops = ops
        cache = KvCache(ops, self.config.text, n_slots=1, context=self.context, chunk=ops.prompt_rows)
        self._runner = Runner(Gemma4(ops, self.config, container.tensors), cache)
        self._processor: Processor | None = None
        self._defaults: GenerationDefaults | None = None
        self._busy = threading.Lock()
        self._resident: tuple[Prompt, Running] | None = None
        self._scheduler: Scheduler | None = None
        self._written = 0  # positions that were ever written since the slot was begun anew: rings have lost the first

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the file. The model cannot be used any more, nor its scheduler; closing it again does nothing."""
        if self._scheduler is not None:
            self._scheduler.close()
            self._scheduler = None
        if self._container is not None:
            self._container.close()
        self._container = self._resident = None

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def prepare(self, messages: Messages, **options: Unpack[PrepareOptions]) -> Prompt:
        """Token ids and media features of a prompt, which `logits`, `generate` and `stream` take as it is.

        Raises PromptError for messages, MediaError for media, ArgumentError for options.
        """
        asked: dict[str, Any] = {**options}
        system = asked.pop("system", None)
        if system is not None:
            messages = _with_system(messages, system, asked)
        return self.processor.prepare(messages, **asked)

    @property
    def processor(self) -> Processor:
        """Tokenizer, chat template and media front ends, read from the file at first use."""
        if self._processor is None:
            container = self._open()
            assets = {name: container.asset_view(name) for name in container.assets}
            self._processor = Processor.from_assets(assets, self.config)
        return self._processor

    @property
    def defaults(self) -> GenerationDefaults:
        """How the file says answers are sampled and end. If it says nothing: the likeliest token, and the end tokens of
        the configuration and of a turn."""
        if self._defaults is None:
            container = self._open()
            defaults = GenerationDefaults()
            if "generation_config.json" in container.assets:
                defaults = GenerationDefaults.from_json(container.asset("generation_config.json"))
            if not defaults.end_ids:
                end_of_turn = self.processor.tokenizer.token_id("<turn|>")
                ends = (*self.config.text.eos_token_ids, *([] if end_of_turn is None else [end_of_turn]))
                defaults = GenerationDefaults(defaults.sampling, ends)
            self._defaults = defaults
        return self._defaults

    # ---- answers ----------------------------------------------------------------------------------------------------

    def logits(self, prompt: Prompt) -> np.ndarray:
        """float32 (N, V): the logits after every token of the prompt."""
        n = len(prompt)
        self._runner.cache.check_room(n, 0)
        needed, free = 4 * n * self.config.text.vocab_size, free_memory_bytes()
        if free is not None and needed > free:
            raise ContextLengthError(
                f"the logits of {n} tokens take {needed >> 20} MiB, {free >> 20} MiB of memory are free; "
                "ask for those of a shorter prompt"
            )
        with self._alone():
            self._resident = None
            return self._runner.all_logits(self._runner.start(prompt, slot=0)[0])

    def generate(self, messages: Messages | Prompt, **options: Unpack[GenerateOptions]) -> Result:
        """The answer to a text, to messages or to a prompt, whole. Options as for `stream`."""
        return Result.of(list(self.stream(messages, **options)))

    def stream(self, messages: Messages | Prompt, **options: Unpack[GenerateOptions]) -> Pieces:
        """The answer in pieces as they come; the last has the finish reason, usage, timings and tool calls.

        Pieces never split a character, and hold neither markers nor stop strings. Options are those of GenerateOptions;
        those of PrepareOptions among them are not for a prompt, which is prepared already. The prompt is made before
        this returns; the model runs as the pieces are taken. Close the iterator to end the answer early.
        Raises PromptError, MediaError, ArgumentError, ContextLengthError.
        """
        return self._stream(messages, {**options}, reuse=False)

    def chat(self, system: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None) -> Chat:
        """A conversation that remembers its turns and does not compute again what is in the cache already."""
        return Chat(self, system, tools)

    def scheduler(
        self,
        slots: int = 4,
        *,
        queue_limit: int = 64,
        cache_dir: str | PathLike[str] | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> Scheduler:
        """Answer several prompts at once, in as many slots, until the scheduler is closed; the model itself answers
        none meanwhile. queue_limit: requests that may wait for a slot. cache_dir: a private folder in which beginnings
        of prompts and encoded media are kept for later schedulers of the same file; cache_bytes: its size at most.
        Raises ArgumentError, and BackendError if the backend cannot keep anything."""
        for name, value in (("slots", slots), ("queue_limit", queue_limit)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_AT_ONCE:
                raise ArgumentError(f"{name} must be a whole number from 1 to {_MOST_AT_ONCE}, found {value!r}")
        alone = self._alone()
        alone.__enter__()
        try:
            ops = self._ops
            cache = KvCache(ops, self.config.text, n_slots=slots, context=self.context, chunk=ops.prompt_rows)
            runner = Runner(self._runner.model, cache)
            saved = None if cache_dir is None else self._saved(cache_dir, cache_bytes, runner)
            self._scheduler = Scheduler(runner, slots, queue_limit=queue_limit, saved=saved, on_close=alone.__exit__)
            return self._scheduler
        except BaseException:
            alone.__exit__()
            raise

    def _saved(self, folder: str | PathLike[str], max_bytes: int, runner: Runner) -> Saved:
        form = self._ops.cache_form()
        if form is None:
            raise BackendError(f"the backend {self.backend} cannot keep its cache on disk; leave out the folder for it")
        identity = f"{__version__} {self._open().identity} {form} {runner.cache.form}"
        return Saved(folder, max_bytes, runner, identity)

    def request(
        self, messages: Messages | Prompt, client: Client = NOBODY, **options: Unpack[GenerateOptions]
    ) -> Request:
        """What a scheduler answers; options as for `stream`."""
        prompt, sampling, settings = self._asked(messages, {**options})
        answer = AnswerDecoder(self.processor.tokenizer, prompt.token_ids)
        return Request(prompt, Sampler(sampling, prompt.token_ids), answer, settings, client)

    def _stream(self, messages: Messages | Prompt, options: dict[str, Any], *, reuse: bool) -> Pieces:
        prompt, sampling, settings = self._asked(messages, options)
        self._runner.check(prompt)
        self._runner.cache.check_room(len(prompt), settings.max_tokens)
        answer = AnswerDecoder(self.processor.tokenizer, prompt.token_ids)
        return self._pieces(prompt, Sampler(sampling, prompt.token_ids), answer, settings, reuse)

    def _asked(self, messages: Messages | Prompt, options: dict[str, Any]) -> tuple[Prompt, Sampling, Settings]:
        """The prompt, and how it is to be answered."""
        max_tokens = options.pop("max_tokens", DEFAULT_MAX_TOKENS)
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ArgumentError(f"max_tokens must be a whole number of at least 1, found {max_tokens!r}")
        stops, logprobs = StopStrings(options.pop("stop", ())), options.pop("logprobs", False)
        given = {name: options.pop(name, None) for name in _SAMPLING}
        sampling = self.defaults.choose(**given)
        outside = [token for token in sampling.logit_bias if token >= self.config.text.vocab_size]
        if outside:
            raise ArgumentError(
                f"token {outside[0]} of logit_bias is outside the vocabulary of {self.config.text.vocab_size}"
            )
        if isinstance(messages, Prompt):
            if options:
                raise ArgumentError(f"a prepared prompt takes no {min(options)}; give it to `prepare`")
            prompt = messages
        else:
            prompt = self.prepare(messages, **options)
        return prompt, sampling, Settings(self.defaults.end_ids, max_tokens, stops, logprobs)

    def _pieces(
        self, prompt: Prompt, sampler: Sampler, answer: AnswerDecoder, settings: Settings, reuse: bool
    ) -> Pieces:
        with self._alone():
            resident, self._resident = self._resident, None
            n_kept = self._kept(resident, prompt) if reuse else 0
            self._written = self._written if n_kept else 0
            ahead = [span for span in prompt.media if span.start + span.features.n_soft_tokens > n_kept]
            soft, encoder_ms = self._runner.encode(ahead)
            sequence = Running(0, list(prompt.token_ids), soft, n_kept)
            try:
                yield from generate(
                    self._runner,
                    sequence,
                    sampler,
                    answer,
                    settings,
                    features_ms=prompt.features_ms,
                    encoder_ms=encoder_ms,
                )
            except GeneratorExit:
                self._stay(prompt, sequence)
                raise
            self._stay(prompt, sequence)

    def _stay(self, prompt: Prompt, sequence: Running) -> None:
        self._resident = prompt, sequence
        self._written = max(self._written, sequence.n_done)

    def _kept(self, resident: tuple[Prompt, Running] | None, prompt: Prompt) -> int:
        """First tokens of the prompt whose keys and values are in the cache and can be gone on from."""
        if resident is None:
            return 0
        old_prompt, old = resident
        n = common_prefix(old_prompt, old.token_ids[: old.n_done], prompt)
        return n if self._runner.cache.can_go_back(self._written, n) else 0

    def _open(self) -> Container:
        if self._container is None:
            raise ArgumentError(f"the model of {self.path} was closed; load it again")
        return self._container

    def _alone(self) -> _Alone:
        self._open()
        return _Alone(self._busy)


class Chat:
    """A conversation. messages: its turns so far, system message included; they may be read and changed."""

    def __init__(self, model: Model, system: str | None, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self._model = model
        self._system = system
        self._tools = tools
        self.messages: list[Mapping[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def generate(self, content: str | Sequence[Any], **options: Unpack[GenerateOptions]) -> Result:
        """The answer to the next user message, whole."""
        return Result.of(list(self.stream(content, **options)))

    def stream(self, content: str | Sequence[Any], **options: Unpack[GenerateOptions]) -> Pieces:
        """The answer to the next user message (a text, or parts with media inline) in pieces, as `Model.stream`.

        Both turns are remembered once the answer ends, whole or closed early; a message that cannot be used is not.
        """
        turn = {"role": "user", "content": content}
        pieces = self._model._stream([*self.messages, turn], {"tools": self._tools, **options}, reuse=True)
        return self._remembered(turn, pieces)

    def _remembered(self, turn: Mapping[str, Any], pieces: Pieces) -> Pieces:
        said: list[Piece] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        finally:
            pieces.close()
            if said:
                self.messages += [turn, _assistant_turn(said)]


def _assistant_turn(said: list[Piece]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in said)}
    reasoning = "".join(piece.reasoning for piece in said)
    if reasoning:
        turn["reasoning_content"] = reasoning
    calls = [call for call in said[-1].tool_calls if call.arguments is not None]
    if calls:
        functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        turn["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return turn


class _Alone:
    """Holds the model while one answer is made."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ArgumentError("the model is busy with another answer; take all of its pieces or close it first")

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def _with_system(messages: Messages, system: str, options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    opening = {"role": "system", "content": system}
    if not isinstance(messages, str):
        return [opening, *messages]
    kinds: list[tuple[MediaKind, Any]] = [
        ("image", options.get("images")),
        ("audio", options.get("audio")),
        ("video", options.get("videos")),
    ]
    parts = [{"type": kind} for kind, media in kinds for _ in media_list(media)]
    return [opening, {"role": "user", "content": [*parts, {"type": "text", "text": messages}]}]


def _check_tensors(container: Container, config: ModelConfig) -> None:
    """Every tensor the configuration implies must be there in its shape (a single number also as one of shape (1,))."""
    for spec in expected_tensors(config).values():
        if spec.unused:
            continue
        tensor = container.tensors.get(spec.name)
        if tensor is None:
            raise LayoutError(f"{container.path}: tensor {spec.name!r} is missing; convert the checkpoint again")
        if (tensor.shape or (1,)) != (spec.shape or (1,)):
            raise LayoutError(
                f"{container.path}: tensor {spec.name!r} has the shape {tensor.shape}, the configuration implies "
                f"{spec.shape}; convert the checkpoint again"
            )
