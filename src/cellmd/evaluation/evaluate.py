"""Runs models beside a yardstick and gathers their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    models: Sequence[Model], against: Model, wanted: Wanted, progress: Progress | None = None
) -> list[Evaluation]:
    """Compare each model with `against`, which runs once for all. Raises ArgumentError if there is nothing to compare
    on or the models have different vocabularies."""
    sizes = {model.config.text.vocab_size for model in (*models, against)}
    if len(sizes) > 1:
        raise ArgumentError(f"the models have vocabularies of {sorted(sizes)} tokens; they cannot be compared")
    samples = list(_samples(against, wanted))
    if not samples:
        raise ArgumentError("nothing to compare on: give texts, a folder of sounds or a folder of pictures")
    evaluations = [Evaluation(model.path, model.backend, model.path.stat().st_size) for model in models]
    for done, (name, sample) in enumerate(samples):
        if progress is not None:
            progress(done, len(samples), name)
        if isinstance(sample, MediaSample):
            _score_answer(sample, models, against, wanted.answer_tokens, evaluations)
        else:
            prompt = Prompt(tuple(sample))
            _score(name, prompt, 0, following(sample), models, against, evaluations)
    if progress is not None:
        progress(len(samples), len(samples), "")
    return evaluations


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


def _score(
    name: str,
    prompt: Prompt,
    first: int,
    targets: Sequence[int],
    models: Sequence[Model],
    against: Model,
    evaluations: Sequence[Evaluation],
) -> None:
    """Compare the logits of the prompt's rows from `first` on; targets: the tokens after them."""
    log_p = log_softmax_(against.logits(prompt)[first:])
    for model, evaluation in zip(models, evaluations, strict=True):
        scores = compare_logits(model.logits(prompt)[first:], log_p, targets)
        evaluation.by_sample.setdefault(name, []).append(scores)


def _score_answer(
    sample: MediaSample,
    models: Sequence[Model],
    against: Model,
    answer_tokens: int,
    evaluations: Sequence[Evaluation],
) -> None:
    """On the yardstick's likeliest answer, token by token; and by words where it is known what was said."""
    if sample.kind == "sound":
        prompt = against.prepare(sample.question, audio=[sample.path])
    else:
        prompt = against.prepare(sample.question, images=[sample.path])
    answer = against.generate(prompt, max_tokens=answer_tokens, temperature=0)
    answered = replace(prompt, token_ids=prompt.token_ids + tuple(answer.token_ids))
    _score(sample.kind, answered, len(prompt) - 1, answer.token_ids, models, against, evaluations)
    if sample.said is None:
        return
    wrong_against, _ = word_errors(answer.text, sample.said)
    for model, evaluation in zip(models, evaluations, strict=True):
        heard = model.generate(prompt, max_tokens=answer_tokens, temperature=0).text
        wrong, words = word_errors(heard, sample.said)
        evaluation.words += words
        evaluation.words_wrong += wrong
        evaluation.words_wrong_against += wrong_against
