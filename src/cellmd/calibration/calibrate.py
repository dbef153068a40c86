"""Goes through the model and rounds its matrices with error feedback, each for the inputs it will have.

Towers come first: the source's encode the media, and the moments of their matrices' inputs are summed on the way. A
tower that meets no media is not touched. The embedding, which is the output head too, comes next: its inputs as a head
are the source's last hidden states. Then each layer: source and stored model run it side by side, the moments of its
inputs are summed, its matrices are rounded, and the stored model runs it again with what it then holds. So every matrix
answers for the errors made before it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from cellmd.calibration.soft_tokens import modality, placeholders_of, with_soft_tokens
from cellmd.calibration.state import State, key_of, stand
from cellmd.calibration.streams import (
    DECODER,
    Products,
    SourceValues,
    StoredValues,
    Stream,
    unread_tensors,
)
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.processors.features import Prompt
from cellmd.quant import PackedTensor
from cellmd.quant.feedback import Feedback, InputMoments, encode_with_feedback
from cellmd.runtime.batch import Sequence as Running

Progress = Callable[[int, int, str], None]
"""Called with the bytes that are done of the tensors the two passes go through, all of them, and what is in hand."""

_Moments = dict[tuple[str, ...], InputMoments]
"""By the names of the matrices that share the input."""

_log = logging.getLogger(__name__)

EMBEDDING = f"{DECODER}embed_tokens.weight"

_HEAD_ROWS_PER_COLUMN = 4
"""Rows that are enough for the moments of the output head's inputs, for which the source runs once more."""


def calibrate(
    checkpoint: Checkpoint,
    plan: Sequence[PlannedTensor],
    prompts: Sequence[Prompt],
    n_threads: int,
    progress: Progress | None = None,
    state_folder: Path | None = None,
) -> dict[str, PackedTensor]:
    """The quantised matrices of a planned conversion as they are to be stored, by name: the decoder's, and those of
    towers that the prompts have media for. Tables are not among the result.

    state_folder: where to keep what is finished, and to go on from what an interrupted calibration of the same source,
    plan and prompts left there; the caller removes it. Raises ContainerError if it cannot be written.
    Memory: the hidden states of all prompts four times, one layer's weights and moments, and the stored matrices; for
    media, a tower's weights and all of its moments.
    """
    state = None if state_folder is None else State(state_folder, key_of(checkpoint, plan, prompts))
    return _Calibration(checkpoint, plan, prompts, n_threads, progress, state).run()


class _Calibration:
    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Sequence[PlannedTensor],
        prompts: Sequence[Prompt],
        n_threads: int,
        progress: Progress | None,
        state: State | None,
    ) -> None:
        self._state = state
        self._source = SourceValues(checkpoint)
        self._stored = StoredValues(self._source, plan)
        self._config = checkpoint.config.text
        self._model_config = checkpoint.config
        self._prompts = prompts
        self._n_threads = n_threads
        self._progress = progress
        self._planned = {
            each.spec.name: each
            for each in plan
            if each.coding.quantised
            and each.spec.role in ("matrix", "embedding")
            and (each.spec.name.startswith(DECODER) or each.spec.component in self._components_met())
        }
        self._total = sum(each.source_bytes for each in self._planned.values())
        self._total += self._head_bytes()
        self._done = 0
        self._saved: set[str] = set()
        self._tensors = unread_tensors(plan)
        self._float_run = Stream(self._source, self._config, self._tensors)
        self._stored_run = Stream(self._stored, self._config, self._tensors)

    def run(self) -> dict[str, PackedTensor]:
        with ThreadPoolExecutor(self._n_threads, thread_name_prefix="calibrate") as pool:
            self._pool = pool
            first = self._go_on()
            if first is None:
                first = 0
                self._before_layers()
            for layer in self._config.layers[first:]:
                self._round(self._moments(partial(self._products, index=layer.index)))
                if layer.index + 1 < self._config.n_layers:
                    self._run(self._stored_run, layer.index, range(len(self._prompts)))
                self._forget()
                self._save()
        return self._stored.packed

    def _before_layers(self) -> None:
        self._pieces = self._with_soft_tokens()
        if EMBEDDING in self._planned:
            self._round({(EMBEDDING,): self._head_moments()})
            self._forget()
        self._begin(self._float_run)
        self._begin(self._stored_run)
        self._round(self._moments(Stream.own_inputs))
        self._save(self._pieces)

    def _go_on(self) -> int | None:
        """The first layer that an interrupted calibration did not finish; None to begin at the beginning."""
        if self._state is None or not self._state.finished:
            return None
        sequences = [Running(0, list(prompt.token_ids)) for prompt in self._prompts]
        found = self._state.load(self._planned, sequences)
        if found is None:
            return None
        self._pieces = sequences
        self._stored.packed, place = found
        for run in (self._float_run, self._stored_run):
            self._begin(run)
        stand((self._float_run, self._stored_run), place, len(sequences))
        self._saved = set(self._stored.packed)
        first = self._state.finished - 1
        done = sum(self._planned[name].source_bytes for name in self._saved)
        _log.warning("calibration goes on behind layer %d of %d (%s)", first, self._config.n_layers, self._state.folder)
        self._report(done + self._head_bytes(), f"{DECODER}layers.{first}")
        return first

    def _save(self, sequences: Sequence[Running] = ()) -> None:
        if self._state is not None:
            new = {name: packed for name, packed in self._stored.packed.items() if name not in self._saved}
            self._state.save(new, (self._float_run, self._stored_run), sequences)
            self._saved |= set(new)

    def _components_met(self) -> set[str]:
        return {modality(prompt) for prompt in self._prompts} - {"text"}

    def _with_soft_tokens(self) -> list[Running]:
        """The prompts as sequences, their media encoded by the source's towers, whose matrices are rounded here: one
        tower after the other, for all of a tower's moments are there at once."""
        sequences = [Running(0, list(prompt.token_ids)) for prompt in self._prompts]
        for component in sorted(self._components_met()):
            moments: _Moments = {
                (name,): InputMoments(each.spec.shape[1], self._pool)
                for name, each in self._planned.items()
                if each.spec.component == component
            }

            def add(name: str, x: np.ndarray, moments: _Moments = moments) -> None:
                if (name,) in moments:
                    moments[(name,)].add(x)

            those = [i for i, prompt in enumerate(self._prompts) if modality(prompt) == component]
            prompts = [self._prompts[i] for i in those]
            encoded = with_soft_tokens(prompts, self._model_config, self._source, self._tensors, add)
            for i, sequence in zip(those, encoded, strict=True):
                sequences[i] = sequence
            self._round(moments)
            self._forget()
        return sequences

    def _begin(self, run: Stream) -> None:
        run.begin(self._pieces, placeholders_of(self._model_config))

    def _products(self, run: Stream, piece: int, index: int) -> Products:
        """The source goes on; the stored model will run the layer again when its matrices are rounded."""
        return run.run(index, piece, keep=run is self._float_run)

    def _head_moments(self) -> InputMoments:
        self._begin(self._float_run)
        pieces = self._enough_pieces(_HEAD_ROWS_PER_COLUMN * self._config.d_model)
        for layer in self._config.layers:
            self._run(self._float_run, layer.index, pieces)
            self._forget()
            self._report(self._layer_bytes(layer.index), f"{DECODER}layers.{layer.index}")
        moments = InputMoments(self._config.d_model, self._pool)
        for piece in pieces:
            moments.add(self._float_run.head_input(piece))
        return moments

    def _enough_pieces(self, n_rows: int) -> list[int]:
        """Pieces with so many rows together, taken evenly; all of them if they have fewer."""
        n_pieces = len(self._prompts)
        share = min(1, n_rows / sum(len(prompt) for prompt in self._prompts))
        n_wanted = math.ceil(share * n_pieces)
        return [i * n_pieces // n_wanted for i in range(n_wanted)]

    def _moments(self, products: Callable[[Stream, int], Products]) -> _Moments:
        """Moments over all pieces of the inputs of matrices that are to be rounded."""
        moments: _Moments = {}
        for source, stored in self._side_by_side(products):
            for names in _sharing(stored.inputs, self._planned.keys() - self._stored.packed.keys()):
                x = stored.inputs[names[0]]
                if names not in moments:
                    moments[names] = InputMoments(x.shape[1], self._pool)
                outputs = stored.outputs.get(names[0])
                # Of a matrix that is used in parts, as the per-layer projection is, they are those of one part.
                whole = outputs is not None and outputs.shape[1] == self._planned[names[0]].spec.shape[0]
                if len(names) == 1 and whole:
                    moments[names].add(x, source.outputs[names[0]] - outputs)
                else:
                    moments[names].add(x, source.inputs[names[0]] - x)
        return moments

    def _side_by_side(self, products: Callable[[Stream, int], Products]) -> Iterator[tuple[Products, Products]]:
        """Of each piece in the source and in the stored model, in order. As many at once as there are threads: inputs
        are large."""
        for first in range(0, len(self._prompts), self._n_threads):
            pieces = range(first, min(first + self._n_threads, len(self._prompts)))
            yield from self._pool.map(lambda i: (products(self._float_run, i), products(self._stored_run, i)), pieces)

    def _run(self, run: Stream, layer: int, pieces: Sequence[int]) -> None:
        """On through a layer, without keeping its products."""

        def one(piece: int) -> None:
            run.run(layer, piece, keep=True)

        list(self._pool.map(one, pieces))

    def _round(self, moments: _Moments) -> None:
        """Uses the moments up: of a layer they are the largest thing in memory."""
        for names in sorted(moments):
            feedback = Feedback.of(moments.pop(names))
            for name in names:
                coding, weights = self._planned[name].coding, self._source.whole(name)
                self._stored.packed[name] = encode_with_feedback(name, weights, coding, feedback, self._pool)
                self._report(self._planned[name].source_bytes, name)

    def _head_bytes(self) -> int:
        """What going through the layers once more takes, for the moments of the embedding."""
        if EMBEDDING not in self._planned:
            return 0
        return sum(self._layer_bytes(layer.index) for layer in self._config.layers)

    def _layer_bytes(self, index: int) -> int:
        prefix = f"{DECODER}layers.{index}."
        return sum(each.source_bytes for name, each in self._planned.items() if name.startswith(prefix))

    def _report(self, n_bytes: int, name: str) -> None:
        self._done += n_bytes
        if self._progress is not None:
            self._progress(self._done, self._total, name)

    def _forget(self) -> None:
        self._source.forget()
        self._stored.forget()


def _sharing(inputs: Mapping[str, np.ndarray], names: Collection[str]) -> list[tuple[str, ...]]:
    """Those of the matrices that have inputs, joined where they share one."""
    found: dict[int, list[str]] = {}
    for name in sorted(inputs.keys() & names):
        found.setdefault(id(inputs[name]), []).append(name)
    return [tuple(each) for each in found.values()]
