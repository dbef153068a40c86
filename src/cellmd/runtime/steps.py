"""Steps of decoding: the one pending token of each of several sequences; and the steps after them, begun ahead.

Where a backend runs ahead (`Ops.runs_ahead`), a step begins before the host has read what the one before it gave: with
the tokens that the device takes the samplers' choices to be. The samplers choose on the host all the same, as on every
backend. If they choose what was guessed, the next step is under way already; if not, it is run again, over what the
other wrote. So no answer depends on a guess; a wrong one costs a step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Listed
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from cellmd.backends.ops import Tensor
from cellmd.errors import ContextLengthError
from cellmd.models.decoder import Batch
from cellmd.models.gemma4 import Gemma4
from cellmd.runtime.batch import Sequence
from cellmd.runtime.kv_cache import KvCache
from cellmd.runtime.logits import AT_HAND, Logits
from cellmd.runtime.sampler import LIKELIEST, Draw

Foreseen = tuple[Draw, Draw]
"""How the tokens after a step, and after the one that follows it, will be chosen."""


class _Begun(NamedTuple):
    """A step under way: its sequences, the positions of their rows, and its largest logits and their tokens; where the
    backend runs ahead, what the device takes the next tokens to be, and a report to the host of these and those."""

    sequences: Listed[Sequence]
    positions: Listed[int]
    logits: Tensor
    guessed: Tensor | None
    largest: tuple[Tensor, Tensor] | Callable[[], np.ndarray]


class Steps:
    """Steps of a model in one cache. placeholders: tokens that the pad token stands for, as in `batch.pack`."""

    def __init__(self, model: Gemma4, cache: KvCache, placeholders: Collection[int]) -> None:
        self._model = model
        self._cache = cache
        self._ops = model.ops
        self._pad_id = model.config.text.pad_token_id
        self._n_largest = min(AT_HAND, model.config.text.vocab_size)
        self._placeholders = placeholders
        self._ahead: _Begun | None = None
        self._guesses: Listed[int] = ()  # the tokens that the step ahead was begun with

    @property
    def is_ahead(self) -> bool:
        """Whether a step has been begun that nobody has asked for yet."""
        return self._ahead is not None

    def drop_ahead(self) -> None:
        """Forget the step begun ahead: something else is run."""
        self._ahead = None

    def run(self, sequences: Listed[Sequence], foreseen: Listed[Foreseen | None]) -> list[Logits]:
        """Run one token of each sequence; the logits after it. If all choices are foreseen the next step begins."""
        ops = self._ops
        step, rows = self._taken_ahead(sequences)
        if step is None:
            ids = [sequence.token_ids[sequence.n_done] for sequence in sequences]
            ids = [self._pad_id if token in self._placeholders else token for token in ids]
            step = self._begin(sequences, 0, ops.ints(ids), [each[0] if each else LIKELIEST for each in foreseen])
            rows = list(range(len(sequences)))
        logits = step.logits
        whole = rows == list(range(len(step.sequences)))
        second = [each[1] for each in foreseen if each is not None]
        has_room = all(sequence.n_done + 2 <= self._cache.context for sequence in sequences)
        if step.guessed is not None and has_room and len(second) == len(sequences):
            logits = ops.keep(logits)  # the next step overwrites them
            guessed = step.guessed if whole else ops.take_rows(step.guessed, ops.ints(rows))
            with suppress(ContextLengthError):  # no memory for one more position: maybe nobody asks for it
                self._ahead = self._begin(sequences, 1, guessed, second)
        for sequence in sequences:
            sequence.n_done += 1
            self._cache.note_written(sequence.slot, sequence.n_done)
        if isinstance(step.largest, tuple):
            values, ids_of = map(ops.to_numpy, step.largest)
            return Logits.of(ops, logits, (values, ids_of))
        report = step.largest()
        self._guesses = report[rows, 0].tolist()
        ids_of, values = report[:, 1 : 1 + self._n_largest], report[:, 1 + self._n_largest :].view(np.float32)
        every = Logits.of(ops, logits, (values, ids_of))
        return every if whole else [every[row] for row in rows]

    def logits(self, ids: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        """Of one row of each of several sequences, (N, V)."""
        self.drop_ahead()
        return self._replayed(ids, positions, slots, [LIKELIEST] * ids.shape[0])[0]

    def _taken_ahead(self, sequences: Listed[Sequence]) -> tuple[_Begun | None, list[int]]:
        """The step begun ahead, and its rows of these sequences, if it is the one that is to be run now."""
        step, self._ahead = self._ahead, None
        if step is None:
            return None, []
        row_of = {id(sequence): row for row, sequence in enumerate(step.sequences)}
        rows = []
        for sequence in sequences:
            row, token = row_of.get(id(sequence)), sequence.token_ids[sequence.n_done]
            if row is None or (step.positions[row], self._guesses[row]) != (sequence.n_done, token):
                return None, []
            if token in self._placeholders:
                return None, []
            rows.append(row)
        return step, rows

    def _begin(self, sequences: Listed[Sequence], ahead: int, ids: Tensor, draws: Listed[Draw]) -> _Begun:
        """Run rows of the sequences so many positions ahead of what they have done."""
        positions = [sequence.n_done + ahead for sequence in sequences]
        self._cache.reserve(max(positions) + 1)
        slots = self._ops.ints([sequence.slot for sequence in sequences])
        logits, first, second = self._replayed(ids, self._ops.ints(positions), slots, draws)
        if not self._ops.runs_ahead:
            return _Begun(sequences, positions, logits, None, (first, second))
        return _Begun(list(sequences), positions, logits, first, self._ops.send(second))

    def _replayed(self, ids: Tensor, positions: Tensor, slots: Tensor, draws: Listed[Draw]) -> tuple[Any, ...]:
        how = [self._ops.numbers(column) for column in zip(*draws, strict=True)] if self._ops.runs_ahead else []
        results: tuple[Any, ...] = self._ops.replay(self._cache, "step", self._step, (ids, positions, slots, *how))
        return results

    def _step(self, ids: Tensor, positions: Tensor, slots: Tensor, *how: Tensor) -> tuple[Any, ...]:
        """One row of each of several sequences: logits (N, V) and the largest of them, or, with `how`, instead of these
        what `Ops.guess` makes of them."""
        n_rows = ids.shape[0]
        batch = Batch(ids, positions, slots, n_rows, n_rows, apart=True)
        logits = self._model.forward(batch, self._cache.layers)
        largest = self._ops.top_k(logits, self._n_largest)
        return logits, *(self._ops.guess(*largest, *how) if how else largest)
