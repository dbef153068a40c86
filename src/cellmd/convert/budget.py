"""Bytes spent where they buy most: the coding of every matrix, under a limit on the size of the file.

Every quantised tensor starts as the smallest recipe stores it. From there it can go up: finer groups, then 8 bits. Each
step costs bytes and saves some of the divergence that the tensor is estimated to cause; steps are taken in the order of
what they save for their bytes, for as long as bytes are left. Within one tensor only steps on the convex hull count, so
that a small first step never hides a better larger one.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cellmd.container.layout import BLOB_ALIGNMENT, aligned
from cellmd.convert.plan import PlannedTensor
from cellmd.errors import ArgumentError
from cellmd.quant import Coding, Sizes, sizes

_FINER = (128, 64, 32)
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Option:
    """One way to store some tensors: their codings in order, bytes in the file, estimated divergence."""

    codings: tuple[Coding, ...]
    n_bytes: int
    divergence: float


@dataclass(frozen=True)
class GroupSpending:
    """What a group of tensors was found to cost in nats when it alone is at its smallest, None if that is not known;
    bits of a weight that were chosen; tensors by their coding, as "int4/32"."""

    name: str
    divergence: float | None
    bits: float
    codings: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        kl = None if self.divergence is None else float(f"{self.divergence:.4g}")
        return {"name": self.name, "kl_alone": kl, "bits": round(self.bits, 3), "codings": dict(self.codings)}


@dataclass(frozen=True)
class Spending:
    """How a budget was spent. codings: by tensor name. estimate: the sum of what is left of the groups' divergence."""

    codings: Mapping[str, Coding]
    groups: tuple[GroupSpending, ...]
    estimate: float

    def as_dict(self) -> dict[str, Any]:
        """For a file's provenance and for JSON."""
        return {
            "groups": [group.as_dict() for group in self.groups],
            "kl_estimated": float(f"{self.estimate:.4g}"),
        }

    def table(self) -> str:
        """For a terminal, without a newline at the end."""
        lines = [f"{'group':34}{'KL alone':>10}{'bits':>7}   tensors by coding"]
        for group in self.groups:
            kl = "unknown" if group.divergence is None else f"{group.divergence:.4f}"
            counts = ", ".join(f"{n} {name}" for name, n in group.codings.items())
            lines.append(f"{group.name:34}{kl:>10}{group.bits:>7.2f}   {counts}")
        if any(group.divergence is None for group in self.groups):
            lines.append("unknown: the material has no sound or picture for it, so it keeps its smallest coding")
        return "\n".join(lines)


@dataclass(frozen=True)
class Choice:
    """Tensors that are coded alike, and the ways to do it, the smallest first."""

    names: tuple[str, ...]
    options: tuple[Option, ...]


def parse_size(text: str) -> int:
    """Bytes of "2.8GB", "2.6 GiB", "900MB" or a plain number. Raises ArgumentError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    by_unit = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if not found or (found[2] or "b").lower() not in by_unit:
        raise ArgumentError(f"size {text!r}: must be a number with a unit, as 2.8GB or 2.6GiB")
    return int(float(found[1]) * by_unit[(found[2] or "b").lower()])


def codings_from(smallest: Coding) -> tuple[Coding, ...]:
    """A tensor's codings from its smallest on: finer groups, then 8 bits."""
    finer = [replace(smallest, group_size=size) for size in _FINER if size < smallest.group_size]
    return (smallest, *finer, replace(smallest, dtype="i8", group_size=64))


def stored_bytes(shape: tuple[int, ...], coding: Coding) -> int:
    """Bytes that a tensor takes in a file, with what its blobs are padded by."""
    parts: Sizes = sizes(shape, coding)
    return sum(aligned(part, BLOB_ALIGNMENT) for part in (parts.data, parts.scales, parts.row_factors))


def spend(choices: Sequence[Choice], extra_bytes: int) -> list[Option]:
    """An option of each choice, with little divergence, that together take at most extra_bytes more than the first
    ones. The same input gives the same options."""
    taken = [0] * len(choices)
    left = extra_bytes
    # By what a byte saves, the largest first; equal ones in the order of the choices.
    steps: list[tuple[float, int, int]] = []

    def offer(index: int) -> None:
        step = _best_step(choices[index].options, taken[index], left)
        if step is not None:
            heapq.heappush(steps, (-step[0], index, step[1]))

    for index in range(len(choices)):
        offer(index)
    while steps:
        _, index, target = heapq.heappop(steps)
        options = choices[index].options
        price = options[target].n_bytes - options[taken[index]].n_bytes
        if price <= left:
            taken[index], left = target, left - price
        offer(index)  # where it was too dear, what is left may pay for a smaller step
    return [choice.options[index] for choice, index in zip(choices, taken, strict=True)]


def _best_step(options: Sequence[Option], at: int, left: int) -> tuple[float, int] | None:
    """What a byte saves in the best affordable step from an option, and where it leads."""
    best = None
    for target in range(at + 1, len(options)):
        price = options[target].n_bytes - options[at].n_bytes
        saved = options[at].divergence - options[target].divergence
        if saved > 0 and 0 < price <= left and (best is None or saved / price > best[0]):
            best = (saved / price, target)
    return best


def replan(plan: Sequence[PlannedTensor], codings: Mapping[str, Coding]) -> list[PlannedTensor]:
    """The plan with other codings for the tensors named."""
    return [
        replace(each, coding=codings[each.spec.name], sizes=sizes(each.spec.shape, codings[each.spec.name]))
        if each.spec.name in codings
        else each
        for each in plan
    ]
