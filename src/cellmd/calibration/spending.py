"""A budget spent by measurement: what each group of tensors costs, and which codings that pays for.

Measured once for each group, all of it at the smallest coding (`sensitivity.py`). What a group costs is shared out
among its tensors, and carried over to finer codings, by the error of each tensor's output: the squared error of its
weights, weighted by the mean square of its inputs, over the same sum of the weights themselves. For small errors the
divergence grows with their square, so shares and ratios of such errors are those of the divergence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np

from cellmd.calibration.sensitivity import Cost, Progress, Sensitivity, few, groups_of
from cellmd.calibration.streams import Kept, SourceValues, unread_tensors
from cellmd.convert.budget import Choice, GroupSpending, Option, Spending, codings_from, spend, stored_bytes
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.errors import ContainerError
from cellmd.processors.features import Prompt
from cellmd.quant import Coding, decode, encode

_SAMPLE_ROWS = 128
"""Rows of a tensor that its error is estimated from, evenly taken: matrices have thousands that are much alike."""

_TOGETHER = re.compile(r"mlp\.(gate|up)_proj\.")
"""The two are multiplied with in one pass over the weights, so they are coded alike."""


class RoundedValues:
    """The source's numbers as each tensor's coding gives them back, rounded when asked for."""

    def __init__(self, source: SourceValues, codings: Mapping[str, Coding]) -> None:
        self._source = source
        self.codings = codings
        self._kept = Kept(lambda name: _rounded(name, source.whole(name), self.codings[name]))

    def whole(self, name: str) -> np.ndarray:
        return self._kept(name)

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        # Rows are rounded one by one, so a few can be had without the others.
        return _rounded(name, self._source.rows(name, ids), self.codings[name])

    def forget(self) -> None:
        self._kept.forget()


def _rounded(name: str, weights: np.ndarray, coding: Coding) -> np.ndarray:
    return decode(encode(name, weights, coding))


def choose_codings(
    checkpoint: Checkpoint,
    plan: Sequence[PlannedTensor],
    prompts: Sequence[Prompt],
    extra_bytes: int,
    n_threads: int,
    progress: Progress | None = None,
) -> Spending:
    """Codings for the quantised tensors of a plan, which has the smallest ones, that take at most extra_bytes more.

    prompts: calibration material; a few of them are measured on. Memory: that of one layer, the embedding as floats,
    and the answers (`sensitivity.POSITIONS`).
    """
    planned = {each.spec.name: each for each in plan if each.coding.quantised}
    source = SourceValues(checkpoint)
    rounded = RoundedValues(source, {name: each.coding for name, each in planned.items()})
    groups = groups_of(checkpoint.config, planned)
    with ThreadPoolExecutor(n_threads, thread_name_prefix="budget") as pool:
        sensitivity = Sensitivity(source, rounded, checkpoint.config, unread_tensors(plan), few(prompts), pool)
        costs = sensitivity.measure(groups, None if progress is None else partial(_as_bytes, progress, planned))
        importance = sensitivity.importance
        errors = dict(
            zip(
                planned,
                pool.map(lambda each: errors_of(checkpoint, each, importance.get(each.spec.name)), planned.values()),
                strict=True,
            )
        )
    choices = _choices(planned, costs, errors)
    options = spend(choices, extra_bytes)
    codings = {
        name: coding
        for choice, option in zip(choices, options, strict=True)
        for name, coding in zip(choice.names, option.codings, strict=True)
    }
    return Spending(
        codings,
        tuple(
            GroupSpending(cost.group.name, cost.divergence, _bits(cost, planned, codings), _counts(cost, codings))
            for cost in costs
        ),
        sum(option.divergence for option in options),
    )


def _as_bytes(progress: Progress, planned: Mapping[str, PlannedTensor], done: int, total: int, name: str) -> None:
    """Progress of a conversion counts bytes of the source."""
    all_bytes = sum(each.source_bytes for each in planned.values())
    progress(all_bytes * done // total, all_bytes, name)


def save_spending(path: Path, key: str, spending: Spending) -> None:
    """Raises ContainerError if the disk refuses."""
    facts = {
        "key": key,
        "codings": {name: astuple(coding) for name, coding in spending.codings.items()},
        "groups": [astuple(group) for group in spending.groups],
        "estimate": spending.estimate,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(facts))
        part.replace(path)
    except OSError as error:
        raise ContainerError(f"{path}: cannot be written: {error.strerror or error}") from None


def load_spending(path: Path, key: str) -> Spending | None:
    """What `save_spending` wrote under the same key, None if there is no such thing."""
    try:
        facts = json.loads(path.read_text())
        if facts["key"] != key:
            return None
        codings = {name: Coding(*coding) for name, coding in facts["codings"].items()}
        return Spending(codings, tuple(GroupSpending(*group) for group in facts["groups"]), float(facts["estimate"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def errors_of(checkpoint: Checkpoint, planned: PlannedTensor, importance: np.ndarray | None) -> list[float]:
    """Of each coding of a tensor: squared error over squared weights, both weighted by the importance of columns."""
    name, n_rows = planned.spec.name, planned.spec.shape[0]
    wanted = np.unique(np.linspace(0, n_rows - 1, min(n_rows, _SAMPLE_ROWS)).astype(np.int64)).tolist()
    weights = np.concatenate([checkpoint.read_rows(name, row, row + 1) for row in wanted])
    matter = np.float32(1) if importance is None else importance
    signal = float((weights * weights * matter).sum(dtype=np.float64)) or 1.0
    errors = []
    for coding in codings_from(planned.coding):
        difference = weights - _rounded(name, weights, coding)
        errors.append(float((difference * difference * matter).sum(dtype=np.float64)) / signal)
    return errors


def _choices(
    planned: Mapping[str, PlannedTensor], costs: Sequence[Cost], errors: Mapping[str, Sequence[float]]
) -> list[Choice]:
    """One for each tensor, or for two that are coded alike."""
    divergence: dict[str, list[float]] = {}
    for cost in costs:
        whole = sum(errors[name][0] for name in cost.group.tensors)
        factor = (cost.divergence or 0.0) / whole if whole else 0.0
        for name in cost.group.tensors:
            divergence[name] = [factor * error for error in errors[name]]
    together: dict[str, list[str]] = {}
    for name in divergence:
        together.setdefault(_TOGETHER.sub("mlp.", name), []).append(name)
    choices = []
    for names in together.values():
        options: list[Option] = []
        for codings in zip(*(codings_from(planned[name].coding) for name in names), strict=True):
            at = len(options)
            options.append(
                Option(
                    codings,
                    sum(stored_bytes(planned[n].spec.shape, c) for n, c in zip(names, codings, strict=True)),
                    sum(divergence[name][at] for name in names),
                )
            )
        choices.append(Choice(tuple(names), tuple(options)))
    return choices


def _bits(cost: Cost, planned: Mapping[str, PlannedTensor], codings: Mapping[str, Coding]) -> float:
    shapes = {name: planned[name].spec.shape for name in cost.group.tensors}
    stored = sum(stored_bytes(shape, codings[name]) for name, shape in shapes.items())
    return 8 * stored / sum(math.prod(shape) for shape in shapes.values())


def _counts(cost: Cost, codings: Mapping[str, Coding]) -> dict[str, int]:
    """Tensors of a group by their coding, as "int4/32"."""
    counts: dict[str, int] = {}
    for name in cost.group.tensors:
        key = f"int{codings[name].dtype[1:]}/{codings[name].group_size}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))
