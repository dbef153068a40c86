"""Running sequences: soft tokens, chunked prefill, the decode loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Listed

import numpy as np

from cellmd.backends.ops import Tensor
from cellmd.errors import ArgumentError, PromptError
from cellmd.models.gemma4 import Gemma4
from cellmd.models.observe import Observe, ignore
from cellmd.processors.features import AudioFeatures, MediaSpan, Prompt
from cellmd.processors.output import AnswerDecoder
from cellmd.runtime.answering import Answering, Settings
from cellmd.runtime.batch import Part, Sequence, SoftTokens, pack
from cellmd.runtime.kv_cache import KvCache
from cellmd.runtime.logits import Logits
from cellmd.runtime.result import Piece, Timings
from cellmd.runtime.sampler import Sampler
from cellmd.runtime.steps import Foreseen, Steps


class Runner:
    """A model and the cache its sequences live in."""

    def __init__(self, model: Gemma4, cache: KvCache) -> None:
        self.model = model
        self.cache = cache
        self._ops = model.ops
        self._pad_id = model.config.text.pad_token_id
        special = model.config.special
        self._placeholders = {token for token in (special.image, special.audio, special.video) if token is not None}
        self._steps = Steps(model, cache, self._placeholders)

    def start(self, prompt: Prompt, slot: int) -> tuple[Sequence, dict[str, float]]:
        """A new sequence of the prompt with its media encoded, and the encoders' milliseconds by kind of media."""
        self.check(prompt)
        soft, encoder_ms = self.encode(prompt.media)
        return Sequence(slot, list(prompt.token_ids), soft), encoder_ms

    def check(self, prompt: Prompt) -> None:
        """Raise PromptError for an empty prompt, ids outside the vocabulary, or media that are not at placeholders."""
        vocab_size = self.model.config.text.vocab_size
        if not prompt.token_ids:
            raise PromptError("the prompt is empty")
        wrong = next((token for token in prompt.token_ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise PromptError(f"token id {wrong} is outside the vocabulary of {vocab_size}")
        for span in prompt.media:
            ids = prompt.token_ids[span.start : span.start + span.features.n_soft_tokens]
            if len(ids) < span.features.n_soft_tokens or not self._placeholders.issuperset(ids):
                raise PromptError(
                    f"{span.kind} at token {span.start} needs {span.features.n_soft_tokens} placeholders; "
                    "make prompts with `prepare`"
                )

    def encode(self, media: Listed[MediaSpan]) -> tuple[list[SoftTokens], dict[str, float]]:
        soft: list[SoftTokens] = []
        encoder_ms: dict[str, float] = {}
        for span in media:
            began = time.perf_counter()
            features = span.features
            if isinstance(features, AudioFeatures):
                values = self.model.encode_audio(features)
            else:
                values = self.model.encode_image(features)
            soft.append(SoftTokens(span.start, features.n_soft_tokens, values))
            encoder_ms[span.kind] = encoder_ms.get(span.kind, 0.0) + _ms_since(began)
        return soft, encoder_ms

    def advance(self, parts: Listed[Part], observe: Observe = ignore) -> Tensor | None:
        """One forward pass over the parts; logits (R, V) of the wanted rows. The sequences move on."""
        batch = pack(self._ops, parts, self._pad_id, self._placeholders)
        self.cache.reserve(max(part.sequence.n_done + part.n_rows for part in parts))
        self._steps.drop_ahead()
        if batch.n_rows == batch.n_wanted == len(parts) and not batch.soft and observe is ignore:
            logits = self._steps.logits(batch.ids, batch.positions, batch.slots)
        else:
            logits = self.model.forward(batch, self.cache.layers, observe, key=self.cache)
        for part in parts:
            part.sequence.n_done += part.n_rows
            self.cache.note_written(part.sequence.slot, part.sequence.n_done)
        return logits

    def prefill(self, sequence: Sequence) -> Logits:
        """Run all that is pending, in chunks; the logits of the last token."""
        self.cache.reserve(len(sequence.token_ids))
        while sequence.n_pending > self.cache.chunk:
            self.advance([Part(sequence, self.cache.chunk, 0)])
        return self._last(self.advance([Part(sequence, sequence.n_pending, 1)]))

    def step(self, sequence: Sequence, foreseen: Foreseen | None = None) -> Logits:
        """Run the one pending token; its logits."""
        return self.steps([sequence], [foreseen])[0]

    def steps(self, sequences: Listed[Sequence], foreseen: Listed[Foreseen | None]) -> list[Logits]:
        """Run the one pending token of each sequence; their logits. foreseen: how the tokens after this step and the
        next will be chosen, where that is known and there will be a next step: it may then be begun ahead."""
        return self._steps.run(sequences, foreseen)

    @property
    def is_ahead(self) -> bool:
        """Whether a step of those that `steps` ran last has been begun and not asked for yet."""
        return self._steps.is_ahead

    def all_logits(self, sequence: Sequence) -> np.ndarray:
        """Run all that is pending, in chunks; float32 (N, V), logits of every token."""
        rows = []
        while sequence.n_pending:
            n = min(sequence.n_pending, self.cache.chunk)
            rows.append(self._ops.to_numpy(self.advance([Part(sequence, n, n)])))
        return rows[0] if len(rows) == 1 else np.concatenate(rows)  # they are large

    def copy_slot(self, source: int, target: int, n: int) -> None:
        """Make one slot hold the first n positions that another holds."""
        for cache in self.cache.layers:
            if cache is not None:
                self._ops.copy_slot_(cache, source, target, n)

    def rows_of(self, logits: Tensor | None) -> list[Logits]:
        """The rows that `advance` returned."""
        return [] if logits is None else Logits.of(self._ops, logits)

    def export_slot(self, slot: int, n: int) -> list[np.ndarray]:
        """What a slot holds for its first n positions, uint8 (B,) of each layer that has a cache."""
        return [self._ops.export_slot(cache, slot, n) for cache in self.cache.layers if cache is not None]

    def import_slot(self, slot: int, n: int, exported: Listed[np.ndarray]) -> None:
        """Make a slot hold what was exported for n positions. Raises ArgumentError if it fits no slot of this cache."""
        caches = [cache for cache in self.cache.layers if cache is not None]
        if len(exported) != len(caches):
            raise ArgumentError(f"{len(exported)} layers were exported, this cache has {len(caches)}")
        self.cache.reserve(n)
        for cache, layer in zip(caches, exported, strict=True):
            self._ops.import_slot_(cache, slot, n, layer)
        self.cache.note_written(slot, n)

    def floats(self, values: np.ndarray) -> Tensor:
        """A tensor of host data that lasts."""
        return self._ops.floats(values)

    def to_numpy(self, x: Tensor) -> np.ndarray:
        """A tensor's copy on the host."""
        array: np.ndarray = self._ops.to_numpy(x)
        return array

    def _last(self, logits: Tensor | None) -> Logits:
        return self.rows_of(logits)[-1]


def generate(
    runner: Runner,
    sequence: Sequence,
    sampler: Sampler,
    answer: AnswerDecoder,
    settings: Settings,
    *,
    features_ms: dict[str, float],
    encoder_ms: dict[str, float],
) -> Iterator[Piece]:
    """Answer a sequence whose prompt is pending. The sequence grows by every chosen token; closing the iterator early
    leaves it consistent: what has run has run, the rest is pending."""
    n_prompt, n_cached = len(sequence.token_ids), sequence.n_done
    clock = _Clock()
    logits = runner.prefill(sequence)
    prefill_ms = clock.stop()
    clock = _Clock()
    answering = Answering(sampler, answer, settings)
    while True:
        sequence.token_ids.append(answering.take(logits))
        if answering.finish is not None:
            break
        piece = answering.piece()
        if piece is not None:
            clock.pause()
            yield piece
            clock.go_on()
        logits = runner.step(sequence, answering.foreseen())
    decode_ms = clock.stop()
    yield answering.last(
        answering.usage(n_prompt, n_cached),
        Timings.of(
            n_prompt - n_cached,
            answering.n_tokens,
            features_ms=features_ms,
            encoder_ms=encoder_ms,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
        ),
    )


def common_prefix(old: Prompt, old_ids: Listed[int], new: Prompt) -> int:
    """How many first tokens of `new` are those of a sequence that was begun with `old` and has grown to `old_ids`,
    media included; at most all but the last, which has to be run for its logits."""
    n = next((i for i, (a, b) in enumerate(zip(old_ids, new.token_ids, strict=False)) if a != b), None)
    n = min(len(old_ids), len(new.token_ids)) if n is None else n
    n = min(n, len(new.token_ids) - 1)
    for i, span in enumerate(new.media):
        if span.start >= n:
            break
        if i >= len(old.media) or not _same_medium(old.media[i], span):
            return span.start
    return n


def _same_medium(a: MediaSpan, b: MediaSpan) -> bool:
    if (a.start, a.kind) != (b.start, b.kind):
        return False
    if isinstance(a.features, AudioFeatures) or isinstance(b.features, AudioFeatures):
        return (
            isinstance(a.features, AudioFeatures)
            and isinstance(b.features, AudioFeatures)
            and np.array_equal(a.features.log_mel, b.features.log_mel)
        )
    same_grid = a.features.grid_width == b.features.grid_width
    return same_grid and np.array_equal(a.features.patches, b.features.patches)


class _Clock:
    """Milliseconds of our own work: not what the caller does between two pieces."""

    def __init__(self) -> None:
        self._ms = 0.0
        self._began = time.perf_counter()

    def pause(self) -> None:
        self._ms += _ms_since(self._began)

    def go_on(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> float:
        self.pause()
        return self._ms


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000.0
