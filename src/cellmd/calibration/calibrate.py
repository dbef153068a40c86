"""Goes through the decoder and rounds its matrices with error feedback, each for the inputs it will have.

The embedding, which is the output head too, comes first: its inputs as a head are the source's last hidden states. Then
each layer: source and stored model run it side by side, the moments of its inputs are summed, its matrices are rounded,
and the stored model runs it again with what it then holds. So every matrix answers for the errors made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from cellmd.calibration.streams import DECODER, SourceValues, StoredValues, Stream, placeholders
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.quant import PackedTensor
from cellmd.quant.feedback import InputMoments, encode_with_feedback

Progress = Callable[[int, int, str], None]
"""Called with the bytes that are done of the tensors the two passes go through, all of them, and what is in hand."""

EMBEDDING = f"{DECODER}embed_tokens.weight"


def calibrate(
    checkpoint: Checkpoint,
    plan: Sequence[PlannedTensor],
    pieces: Sequence[Sequence[int]],
    n_threads: int,
    progress: Progress | None = None,
) -> dict[str, PackedTensor]:
    """The decoder's quantised matrices of a planned conversion as they are to be stored, by name.

    pieces: token ids of calibration texts. Towers and tables are not among the result. Memory: the hidden states of
    all pieces four times, one layer's weights and moments, and the stored matrices.
    """
    return _Calibration(checkpoint, plan, pieces, n_threads, progress).run()


class _Calibration:
    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Sequence[PlannedTensor],
        pieces: Sequence[Sequence[int]],
        n_threads: int,
        progress: Progress | None,
    ) -> None:
        self._source = SourceValues(checkpoint)
        self._stored = StoredValues(self._source, plan)
        self._config = checkpoint.config.text
        self._pieces = pieces
        self._n_threads = n_threads
        self._progress = progress
        self._planned = {
            each.spec.name: each
            for each in plan
            if each.coding.quantised
            and each.spec.name.startswith(DECODER)
            and each.spec.role in ("matrix", "embedding")
        }
        self._total = sum(each.source_bytes for each in self._planned.values())
        if EMBEDDING in self._planned:  # the layers run once more, for the embedding's moments
            self._total += sum(self._layer_bytes(layer.index) for layer in self._config.layers)
        self._done = 0
        tensors = placeholders(plan)
        self._float_run = Stream(self._source, self._config, tensors)
        self._stored_run = Stream(self._stored, self._config, tensors)

    def run(self) -> dict[str, PackedTensor]:
        with ThreadPoolExecutor(self._n_threads, thread_name_prefix="calibrate") as pool:
            self._pool = pool
            if EMBEDDING in self._planned:
                self._round({EMBEDDING: self._head_moments()})
            self._float_run.begin(self._pieces)
            self._stored_run.begin(self._pieces)
            self._round(self._moments(Stream.own_inputs))
            for layer in self._config.layers:
                self._round(self._moments(partial(self._inputs, index=layer.index)))
                for piece in range(len(self._pieces)):
                    self._stored_run.run(layer.index, piece, keep=True)
                self._forget()
        return self._stored.packed

    def _inputs(self, run: Stream, piece: int, index: int) -> dict[str, np.ndarray]:
        """The source goes on; the stored model will run the layer again when its matrices are rounded."""
        return run.run(index, piece, keep=run is self._float_run)

    def _head_moments(self) -> InputMoments:
        self._float_run.begin(self._pieces)
        for layer in self._config.layers:
            for piece in range(len(self._pieces)):
                self._float_run.run(layer.index, piece, keep=True)
            self._forget()
            self._report(self._layer_bytes(layer.index), f"{DECODER}layers.{layer.index}")
        moments = InputMoments(self._config.d_model)
        for piece in range(len(self._pieces)):
            hidden = self._float_run.head_input(piece)
            moments.add(hidden, hidden)
        return moments

    def _moments(self, inputs: Callable[[Stream, int], dict[str, np.ndarray]]) -> dict[str, InputMoments]:
        """Moments over all pieces, by matrix name. Matrices with one input (q, k and v) share one object."""
        moments: dict[str, InputMoments] = {}
        for piece in range(len(self._pieces)):
            source, stored = inputs(self._float_run, piece), inputs(self._stored_run, piece)
            added: set[int] = set()
            for name in stored.keys() & self._planned.keys() - self._stored.packed.keys():
                x = stored[name]
                if name not in moments:
                    moments[name] = next(
                        (moments[other] for other in moments if stored.get(other) is x), InputMoments(x.shape[1])
                    )
                if id(moments[name]) not in added:
                    added.add(id(moments[name]))
                    moments[name].add(x, source[name])
        return moments

    def _round(self, moments: dict[str, InputMoments]) -> None:
        for name in sorted(moments):
            planned = self._planned[name]
            weights = self._source.whole(name)
            self._stored.packed[name] = encode_with_feedback(name, weights, planned.coding, moments[name], self._pool)
            self._report(planned.source_bytes, name)

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
