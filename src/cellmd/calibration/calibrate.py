"""Goes through the model and rounds its matrices with error feedback, each for the inputs it will have.

Towers come first: the source's encode the media, and the moments of their matrices' inputs are summed on the way. A
tower that meets no media is not touched. The embedding, which is the output head too, comes next: its inputs as a head
are the source's last hidden states. Then each layer: source and stored model run it side by side, the moments of its
inputs are summed, its matrices are rounded, and the stored model runs it again with what it then holds. So every matrix
answers for the errors made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from cellmd.calibration.soft_tokens import placeholders_of, with_soft_tokens
from cellmd.calibration.streams import (
    DECODER,
    SourceValues,
    StoredValues,
    Stream,
    unread_tensors,
)
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.processors.features import AudioFeatures, Prompt
from cellmd.quant import PackedTensor
from cellmd.quant.feedback import InputMoments, encode_with_feedback
from cellmd.runtime.batch import Sequence as Running

Progress = Callable[[int, int, str], None]
"""Called with the bytes that are done of the tensors the two passes go through, all of them, and what is in hand."""

EMBEDDING = f"{DECODER}embed_tokens.weight"


def calibrate(
    checkpoint: Checkpoint,
    plan: Sequence[PlannedTensor],
    prompts: Sequence[Prompt],
    n_threads: int,
    progress: Progress | None = None,
) -> dict[str, PackedTensor]:
    """The quantised matrices of a planned conversion as they are to be stored, by name: the decoder's, and those of
    towers that the prompts have media for. Tables are not among the result.

    Memory: the hidden states of all prompts four times, one layer's weights and moments, and the stored matrices; for
    media, a tower's weights and all of its moments.
    """
    return _Calibration(checkpoint, plan, prompts, n_threads, progress).run()


class _Calibration:
    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Sequence[PlannedTensor],
        prompts: Sequence[Prompt],
        n_threads: int,
        progress: Progress | None,
    ) -> None:
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
        if EMBEDDING in self._planned:  # the layers run once more, for the embedding's moments
            self._total += sum(self._layer_bytes(layer.index) for layer in self._config.layers)
        self._done = 0
        self._tensors = unread_tensors(plan)
        self._float_run = Stream(self._source, self._config, self._tensors)
        self._stored_run = Stream(self._stored, self._config, self._tensors)

    def run(self) -> dict[str, PackedTensor]:
        with ThreadPoolExecutor(self._n_threads, thread_name_prefix="calibrate") as pool:
            self._pool = pool
            self._pieces = self._with_soft_tokens()
            if EMBEDDING in self._planned:
                self._round({EMBEDDING: self._head_moments()})
            self._begin(self._float_run)
            self._begin(self._stored_run)
            self._round(self._moments(Stream.own_inputs))
            for layer in self._config.layers:
                self._round(self._moments(partial(self._inputs, index=layer.index)))
                for piece in range(len(self._prompts)):
                    self._stored_run.run(layer.index, piece, keep=True)
                self._forget()
        return self._stored.packed

    def _components_met(self) -> set[str]:
        media = [span.features for prompt in self._prompts for span in prompt.media]
        return {"audio" if isinstance(each, AudioFeatures) else "vision" for each in media}

    def _with_soft_tokens(self) -> list[Running]:
        """The prompts as sequences, their media encoded by the source's towers, whose matrices are rounded here."""
        moments = {
            name: InputMoments(each.spec.shape[1])
            for name, each in self._planned.items()
            if not name.startswith(DECODER)
        }

        def add(name: str, x: np.ndarray) -> None:
            if name in moments:
                moments[name].add(x, x)

        sequences = with_soft_tokens(self._prompts, self._model_config, self._source, self._tensors, add)
        self._round(moments)
        self._forget()
        return sequences

    def _begin(self, run: Stream) -> None:
        run.begin(self._pieces, placeholders_of(self._model_config))

    def _inputs(self, run: Stream, piece: int, index: int) -> dict[str, np.ndarray]:
        """The source goes on; the stored model will run the layer again when its matrices are rounded."""
        return run.run(index, piece, keep=run is self._float_run)

    def _head_moments(self) -> InputMoments:
        self._begin(self._float_run)
        for layer in self._config.layers:
            for piece in range(len(self._prompts)):
                self._float_run.run(layer.index, piece, keep=True)
            self._forget()
            self._report(self._layer_bytes(layer.index), f"{DECODER}layers.{layer.index}")
        moments = InputMoments(self._config.d_model)
        for piece in range(len(self._prompts)):
            hidden = self._float_run.head_input(piece)
            moments.add(hidden, hidden)
        return moments

    def _moments(self, inputs: Callable[[Stream, int], dict[str, np.ndarray]]) -> dict[str, InputMoments]:
        """Moments over all pieces, by matrix name. Matrices with one input (q, k and v) share one object."""
        moments: dict[str, InputMoments] = {}
        for piece in range(len(self._prompts)):
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
