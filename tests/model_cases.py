"""Small models and prompts that the tests of models, runtime and goldens share; and our side of every border."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cellmd
from cellmd.api import Model
from cellmd.backends.ops import Tensor
from cellmd.errors import CellmdError
from cellmd.processors.features import AudioFeatures, ImageFeatures, MediaSpan, Prompt
from cellmd.runtime.batch import Part
from cellmd.runtime.result import Piece
from checkpoints import make_checkpoint


def build(folder: Path, shape: str, recipe: str = "float", seed: int = 0, **overrides: Any) -> Path:
    """Make a random float32 checkpoint of a shape and convert it: the path of the .cellmd file."""
    make_checkpoint(folder / "checkpoint", shape=shape, seed=seed, dtype="float32", config_overrides=overrides)
    cellmd.convert(folder / "checkpoint", folder / "model.cellmd", recipe=recipe)
    return folder / "model.cellmd"


def text_prompt(n: int = 60, seed: int = 0) -> Prompt:
    """Letters and words of the small tokenizer, after the begin token."""
    ids = np.random.default_rng(seed).integers(110, 230, n - 1).tolist()
    return Prompt((2, *ids))


def picture(model: Model, height: int, width: int, seed: int = 0) -> ImageFeatures:
    """Random patches: height x width blocks of pooled patches."""
    vision = model.config.vision
    assert vision is not None
    return picture_of(vision.patch_size, height * vision.pooling, width * vision.pooling, height * width, seed)


def picture_of(patch_size: int, rows: int, columns: int, pooled: int, seed: int = 0) -> ImageFeatures:
    patches = np.random.default_rng(seed).random((rows * columns, 3 * patch_size**2), dtype=np.float32)
    return ImageFeatures(patches, rows, columns, pooled)


def sound(n_frames: int, seed: int = 0) -> AudioFeatures:
    log_mel = np.random.default_rng(seed).standard_normal((n_frames, 128)).astype(np.float32)
    return AudioFeatures(log_mel, (n_frames + 3) // 4, n_frames / 100)


def media_prompt(model: Model, seed: int = 0) -> Prompt:
    """Everything the model has towers for, several of each, among text: longer than every window."""
    rng = np.random.default_rng(seed)
    special = model.config.special
    ids: list[int] = [2]
    spans: list[MediaSpan] = []

    def text(n: int) -> None:
        ids.extend(rng.integers(110, 230, n).tolist())

    def medium(kind: Any, token: int | None, features: ImageFeatures | AudioFeatures) -> None:
        assert token is not None
        spans.append(MediaSpan(kind, len(ids), features))
        ids.extend([token] * features.n_soft_tokens)
        text(2)

    text(3)
    if model.config.vision is not None:
        medium("image", special.image, picture(model, 2, 3, seed))
    if model.config.audio is not None:
        medium("audio", special.audio, sound(57, seed + 1))
    if model.config.vision is not None:
        medium("image", special.image, picture(model, 3, 1, seed + 2))
        medium("video", special.video, picture(model, 1, 2, seed + 3))
        medium("video", special.video, picture(model, 1, 2, seed + 4))
    if model.config.audio is not None:
        medium("audio", special.audio, sound(23, seed + 5))
    text(24)
    return Prompt(tuple(ids), tuple(spans))


class Borders:
    """An observer that keeps a copy of what passes every border."""

    def __init__(self) -> None:
        self.seen: dict[str, np.ndarray] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        self.seen[name] = np.array(tensor)


def decoder_borders(model: Model, prompt: Prompt) -> dict[str, np.ndarray]:
    """One pass over a prompt: "embedded", "per_layer_input.N", "layer.N", "logits"; (rows, width) each."""
    runner, borders = model._runner, Borders()
    sequence, _ = runner.start(prompt, slot=0)
    logits = runner.advance([Part(sequence, len(prompt), len(prompt))], borders)
    return {**borders.seen, "logits": np.array(logits)}


def soft_tokens(model: Model, prompt: Prompt) -> list[np.ndarray]:
    """What the towers make of each medium of a prompt."""
    runner = model._runner
    return [runner.to_numpy(span.values) for span in runner.encode(prompt.media)[0]]


def step_logits(model: Model, prompt: Prompt, answer: list[int]) -> np.ndarray:
    """Logits (len(answer), V) that each token of an answer would be chosen by, run token by token."""
    runner = model._runner
    sequence, _ = runner.start(prompt, slot=0)
    steps = [runner.prefill(sequence).all()]
    for token in answer[:-1]:
        sequence.token_ids.append(token)
        steps.append(runner.step(sequence).all())
    return np.stack(steps)


def answer_together(model: Model, prompts: list[Prompt], max_tokens: int) -> list[list[int]]:
    """What greedy sampling makes of prompts that a scheduler runs at the same time."""
    answers: list[list[int]] = [[] for _ in prompts]
    ended = threading.Semaphore(0)

    def deliver(index: int, what: Piece | CellmdError) -> None:
        if isinstance(what, Piece):
            answers[index] += what.token_ids
        if isinstance(what, CellmdError) or what.finish_reason is not None:
            ended.release()

    requests = [model.request(prompt, temperature=0, max_tokens=max_tokens) for prompt in prompts]
    scheduler = model.scheduler(len(prompts))
    for index, request in enumerate(requests):
        scheduler.submit(request, partial(deliver, index))
    for _ in prompts:
        ended.acquire()
    scheduler.close()
    return answers
