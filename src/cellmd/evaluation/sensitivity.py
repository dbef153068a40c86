"""What each part of a file costs: the divergence from the yardstick when the other parts are the yardstick's."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellmd.api import Model
from cellmd.calibration.sensitivity import Cost, Progress, Sensitivity, few, groups_of
from cellmd.calibration.streams import Kept
from cellmd.container import Container
from cellmd.errors import ArgumentError
from cellmd.evaluation.evaluate import Wanted
from cellmd.evaluation.samples import media_samples, text_pieces
from cellmd.processors.features import Prompt
from cellmd.quant import decode, decode_rows


@dataclass(frozen=True)
class GroupCost:
    """cost: as measured. bits: that the file takes for a weight of the group."""

    cost: Cost
    bits: float

    def as_dict(self) -> dict[str, Any]:
        return {**self.cost.as_dict(), "bits": round(self.bits, 3)}


class FileValues:
    """The numbers of a .cellmd file."""

    def __init__(self, container: Container) -> None:
        self._tensors = container.tensors
        self._kept = Kept(lambda name: decode(container.tensors[name]))

    def whole(self, name: str) -> np.ndarray:
        return self._kept(name)

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        packed = self._tensors[name]
        if len(packed.shape) > 2:  # a table with its leading axes joined; such ones are small
            joined: np.ndarray = self.whole(name).reshape(-1, packed.shape[-1])[ids]
            return joined
        return decode_rows(packed, ids)

    def forget(self) -> None:
        self._kept.forget()


def sensitivity(
    path: Path, against: Model, wanted: Wanted, progress: Progress | None = None, n_threads: int | None = None
) -> list[GroupCost]:
    """The cost of each group of the file's quantised tensors, in a fixed order. n_threads: that prompts are shared out
    over, all cores by default.

    Both sides run in float32 on NumPy. Of what is wanted a few pieces are taken (`calibration.sensitivity`). Raises
    ArgumentError if the two are not one model, if the file has nothing quantised, or if there is nothing to run on.
    """
    with ExitStack() as stack:
        stored = stack.enter_context(Container.open(path))
        source = stack.enter_context(Container.open(against.path))
        shapes, others = ({name: each.shape for name, each in file.tensors.items()} for file in (stored, source))
        if shapes != others:
            raise ArgumentError(f"{path} and {against.path} do not have the same tensors; they are not of one model")
        quantised = {name: each for name, each in stored.tensors.items() if each.coding.quantised}
        if not quantised:
            raise ArgumentError(f"{path}: nothing in it is quantised, so nothing in it costs anything")
        prompts = few(_prompts(against, wanted))
        if not prompts:
            raise ArgumentError("nothing to measure on: give texts, a folder of sounds or a folder of pictures")
        pool = stack.enter_context(ThreadPoolExecutor(n_threads or os.cpu_count(), thread_name_prefix="sensitivity"))
        measured = Sensitivity(FileValues(source), FileValues(stored), against.config, source.tensors, prompts, pool)
        costs = measured.measure(groups_of(against.config, quantised), progress)
        return [
            GroupCost(
                cost,
                8
                * sum(quantised[name].n_bytes for name in cost.group.tensors)
                / sum(math.prod(quantised[name].shape) for name in cost.group.tensors),
            )
            for cost in costs
        ]


def _prompts(against: Model, wanted: Wanted) -> Sequence[Prompt]:
    """Pieces of text; questions about sounds and pictures, each with the yardstick's answer."""
    prompts = []
    for path in wanted.texts:
        tokenizer, bos = against.processor.tokenizer, against.config.text.bos_token_id
        pieces = text_pieces(tokenizer, path, bos, wanted.piece_tokens, wanted.most_tokens)
        prompts += [Prompt(tuple(piece)) for piece in pieces]
    for sample in () if wanted.sounds is None else media_samples("sound", wanted.sounds, wanted.question):
        prompts.append(_answered(against, against.prepare(sample.question, audio=[sample.path]), wanted))
    for sample in () if wanted.pictures is None else media_samples("picture", wanted.pictures, wanted.question):
        prompts.append(_answered(against, against.prepare(sample.question, images=[sample.path]), wanted))
    return prompts


def _answered(against: Model, prompt: Prompt, wanted: Wanted) -> Prompt:
    answer = against.generate(prompt, max_tokens=wanted.answer_tokens, temperature=0)
    return replace(prompt, token_ids=prompt.token_ids + tuple(answer.token_ids))
