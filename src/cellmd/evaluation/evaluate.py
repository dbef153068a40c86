"""Runs models beside a yardstick and gathers their scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellmd.api import Model
from cellmd.calibration.divergence import log_softmax_
from cellmd.calibration.material import Kind
from cellmd.errors import ArgumentError
from cellmd.evaluation.samples import MediaSample, following, media_samples, text_pieces
from cellmd.evaluation.scores import PieceScores, Summary, compare_logits, word_errors
from cellmd.processors.features import Prompt

Progress = Callable[[int, int, str], None]
"""Called with the samples that are done, all of them, and the name of the one in hand."""


@dataclass(frozen=True)
class Wanted:
    """What to compare on. texts: files. sounds, pictures: folders. question: about each sound and picture, None for the
    usual one. piece_tokens: how long a piece of text is. most_tokens: taken of each text. answer_tokens: of the
    yardstick's answer to each question, on which models are compared."""

    texts: Sequence[Path] = ()
    sounds: Path | None = None
    pictures: Path | None = None
    question: str | None = None
    piece_tokens: int = 512
    most_tokens: int = 8192
    answer_tokens: int = 48


@dataclass
class Evaluation:
    """Scores of one model. by_sample: a text's name, "sound" or "picture", to the scores of its pieces.

    words_wrong, words_wrong_against: errors of the model's and of the yardstick's transcripts; words: all there are.
    """

    path: Path
    backend: str
    file_bytes: int
    by_sample: dict[str, list[PieceScores]] = field(default_factory=dict)
    words: int = 0
    words_wrong: int = 0
    words_wrong_against: int = 0

    def modalities(self) -> dict[str, Summary]:
        """Summaries of "text", "sound" and "picture", as far as there are samples."""
        grouped: dict[str, list[PieceScores]] = {}
        for name, pieces in self.by_sample.items():
            grouped.setdefault(name if name in ("sound", "picture") else "text", []).extend(pieces)
        return {name: Summary.of(pieces) for name, pieces in grouped.items()}

    def as_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "file": str(self.path),
            "file_bytes": self.file_bytes,
            "backend": self.backend,
            "modalities": {name: summary.as_dict() for name, summary in self.modalities().items()},
            "samples": {name: Summary.of(pieces).as_dict() for name, pieces in self.by_sample.items()},
        }
        if self.words:
            facts["word_error_rate"] = self.words_wrong / self.words
            facts["word_error_rate_against"] = self.words_wrong_against / self.words
        return facts


def evaluate(
    models: Sequence[Model],
    against: Model,
    wanted: Wanted,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> list[Evaluation]:
    """Compare each model with `against`, which runs once for all. n_threads: that positions are shared out over, all
    cores by default. Raises ArgumentError if there is nothing to compare on or the models have different vocabularies.
    """
    sizes = {model.config.text.vocab_size for model in (*models, against)}
    if len(sizes) > 1:
        raise ArgumentError(f"the models have vocabularies of {sorted(sizes)} tokens; they cannot be compared")
    samples = list(_samples(against, wanted))
    if not samples:
        raise ArgumentError("nothing to compare on: give texts, a folder of sounds or a folder of pictures")
    with ThreadPoolExecutor(n_threads or os.cpu_count(), thread_name_prefix="evaluate") as pool:
        comparison = _Comparison(models, against, wanted.answer_tokens, pool)
        for done, (name, sample) in enumerate(samples):
            if progress is not None:
                progress(done, len(samples), name)
            if isinstance(sample, MediaSample):
                comparison.on_answer(sample)
            else:
                comparison.on_rows(name, Prompt(tuple(sample)), 0, following(sample))
    if progress is not None:
        progress(len(samples), len(samples), "")
    return comparison.evaluations


def _samples(against: Model, wanted: Wanted) -> Iterator[tuple[str, MediaSample | list[int]]]:
    for path in wanted.texts:
        tokenizer, bos = against.processor.tokenizer, against.config.text.bos_token_id
        for piece in text_pieces(tokenizer, path, bos, wanted.piece_tokens, wanted.most_tokens):
            yield path.name, piece
    kinds: list[tuple[Kind, Path | None]] = [("sound", wanted.sounds), ("picture", wanted.pictures)]
    for kind, folder in kinds:
        if folder is not None:
            for sample in media_samples(kind, folder, wanted.question):
                yield kind, sample


class _Comparison:
    def __init__(self, models: Sequence[Model], against: Model, answer_tokens: int, pool: Executor) -> None:
        """pool: shares out the positions of a sample. The models themselves run one after another."""
        self.evaluations = [Evaluation(model.path, model.backend, model.path.stat().st_size) for model in models]
        self._models = models
        self._against = against
        self._answer_tokens = answer_tokens
        self._pool = pool

    def on_rows(self, name: str, prompt: Prompt, first: int, targets: Sequence[int]) -> None:
        """Compare the logits of the prompt's rows from `first` on; targets: the tokens after them."""
        log_p = log_softmax_(self._against.logits(prompt)[first:], self._pool)
        for model, evaluation in zip(self._models, self.evaluations, strict=True):
            scores = compare_logits(model.logits(prompt)[first:], log_p, targets, self._pool)
            evaluation.by_sample.setdefault(name, []).append(scores)

    def on_answer(self, sample: MediaSample) -> None:
        """On the yardstick's likeliest answer, token by token; and by words where it is known what was said."""
        if sample.kind == "sound":
            prompt = self._against.prepare(sample.question, audio=[sample.path])
        else:
            prompt = self._against.prepare(sample.question, images=[sample.path])
        answer = self._against.generate(prompt, max_tokens=self._answer_tokens, temperature=0)
        answered = replace(prompt, token_ids=prompt.token_ids + tuple(answer.token_ids))
        self.on_rows(sample.kind, answered, len(prompt) - 1, answer.token_ids)
        if sample.said is None:
            return
        wrong_against, _ = word_errors(answer.text, sample.said)
        for model, evaluation in zip(self._models, self.evaluations, strict=True):
            heard = model.generate(prompt, max_tokens=self._answer_tokens, temperature=0).text
            wrong, words = word_errors(heard, sample.said)
            evaluation.words += words
            evaluation.words_wrong += wrong
            evaluation.words_wrong_against += wrong_against
