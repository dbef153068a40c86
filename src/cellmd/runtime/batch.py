"""Sequences, and how parts of several become the packed rows of one forward pass."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import NamedTuple

from cellmd.backends.ops import Ops, Tensor
from cellmd.models.decoder import Batch


@dataclass(frozen=True)
class SoftTokens:
    """Soft tokens (n, D) that stand at positions start .. start + n of a sequence."""

    start: int
    n: int
    values: Tensor


@dataclass
class Sequence:
    """One conversation in a cache slot: all of its tokens, and how many of them have been through the model."""

    slot: int
    token_ids: list[int]
    soft: list[SoftTokens] = field(default_factory=list)
    n_done: int = 0

    @property
    def n_pending(self) -> int:
        return len(self.token_ids) - self.n_done


class Part(NamedTuple):
    """The next n_rows pending tokens of a sequence; the logits of the last n_wanted of them are wanted."""

    sequence: Sequence
    n_rows: int
    n_wanted: int


def pack(ops: Ops, parts: Listed[Part], pad_id: int, placeholders: Collection[int]) -> Batch:
    """The parts, one after another, as a batch; the caller advances `n_done` once it has run.

    Placeholder tokens have no embeddings of their own: soft tokens take their place, and the pad token's where there
    are none (a model may choose a placeholder in its answer). Their per-layer embeddings are the pad token's always.
    """
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    soft: list[tuple[Tensor, Tensor]] = []
    for sequence, n_rows, n_wanted in parts:
        first_row, start, stop = len(ids), sequence.n_done, sequence.n_done + n_rows
        ids += [pad_id if token in placeholders else token for token in sequence.token_ids[start:stop]]
        positions += range(start, stop)
        slots += [sequence.slot] * n_rows
        wanted += range(first_row + n_rows - n_wanted, first_row + n_rows)
        for span in sequence.soft:
            low, high = max(start, span.start), min(stop, span.start + span.n)
            if low >= high:
                continue
            rows = range(first_row + low - start, first_row + high - start)
            values = ops.take_rows(span.values, ops.ints(range(low - span.start, high - span.start)))
            soft.append((ops.ints(rows), values))
    return Batch(
        ids=ops.ints(ids),
        positions=ops.ints(positions),
        slots=ops.ints(slots),
        n_rows=len(ids),
        n_wanted=len(wanted),
        wanted=None if len(wanted) == len(ids) else ops.ints(wanted),
        soft=soft,
    )
