"""What a conversion did: sizes by component and the error of each tensor, as a table for people and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellmd.convert.budget import Spending
from cellmd.convert.tensor_map import Component
from cellmd.quant import ErrorStats

# Key in JSON, title in the table, and what is summed.
_PARTS: tuple[tuple[str, str, tuple[Component, ...]], ...] = (
    ("text", "text", ("text", "per_layer")),
    ("per_layer_embeddings", "  of which per-layer embeddings", ("per_layer",)),
    ("vision", "vision", ("vision",)),
    ("audio", "audio", ("audio",)),
    ("all", "all weights", ("text", "per_layer", "vision", "audio")),
)
_N_WORST = 5

_GRID_DB = 50.0
"""Rounding to bfloat16 leaves 57 dB, INT8 of weights that are on no grid at most 45."""


@dataclass(frozen=True)
class TensorReport:
    """One stored tensor. error: against the source."""

    name: str
    component: Component
    quantised: bool
    stored_bytes: int
    error: ErrorStats


@dataclass(frozen=True)
class ErrorSummary:
    """Signal to noise of some quantised tensors, in decibels; infinite where nothing was lost.

    overall_db: of all their numbers together. median_db, lowest_db: over tensors.
    """

    n_tensors: int
    overall_db: float
    median_db: float
    lowest_db: float

    @classmethod
    def of(cls, tensors: list[TensorReport]) -> ErrorSummary:
        each_db = [tensor.error.snr_db for tensor in tensors]
        together = sum((tensor.error for tensor in tensors), ErrorStats())
        return cls(len(tensors), together.snr_db, statistics.median(each_db), min(each_db))


@dataclass(frozen=True)
class ConversionReport:
    """Returned by `convert`.

    source: the checkpoint's name. original_bytes: by component, of every tensor in the checkpoint, the dropped too.
    dropped: names of tensors that no computation reads. group_size: the override asked for, None for the recipe's own.
    tokenizer_path: the copy beside the file, if one was asked for. spending: of a budget, if one was given.
    """

    source: str
    path: Path
    tokenizer_path: Path | None
    recipe: str
    group_size: int | None
    seconds: float
    file_bytes: int
    original_bytes: Mapping[Component, int]
    tensors: tuple[TensorReport, ...]
    dropped: tuple[str, ...]
    spending: Spending | None = None

    @property
    def on_grid(self) -> list[str]:
        """Names of quantised tensors whose weights lay on a grid of codes already."""
        return [each.name for each in self.tensors if each.quantised and each.error.snr_db > _GRID_DB]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: sizes in bytes, errors in decibels of signal to noise, null where nothing was lost."""
        return {
            "source": self.source,
            "path": str(self.path),
            "tokenizer_path": None if self.tokenizer_path is None else str(self.tokenizer_path),
            "recipe": self.recipe,
            "group_size": self.group_size,
            "seconds": round(self.seconds, 3),
            "file_bytes": self.file_bytes,
            "tensors_stored": len(self.tensors),
            "tensors_dropped": len(self.dropped),
            "tensors_on_grid": len(self.on_grid),
            "sizes": {
                key: {"original_bytes": original, "stored_bytes": stored, "ratio": round(original / stored, 4)}
                for key, _, original, stored in self._sizes()
            },
            "errors": {
                key: {
                    "tensors": summary.n_tensors,
                    "overall_db": _finite(summary.overall_db),
                    "median_db": _finite(summary.median_db),
                    "lowest_db": _finite(summary.lowest_db),
                }
                for key, _, summary in self._errors()
            },
            "worst": [{"name": tensor.name, **tensor.error.as_json()} for tensor in self._worst()],
            **({} if self.spending is None else {"budget": self.spending.as_dict()}),
        }

    def table(self) -> str:
        """The same for a terminal, without a newline at the end."""
        lines = [f"{'component':32}{'original MB':>14}{'stored MB':>14}{'ratio':>8}"]
        for _, title, original, stored in self._sizes():
            lines.append(f"{title:32}{original / 1e6:>14,.1f}{stored / 1e6:>14,.1f}{original / stored:>8.2f}")
        rest = self.file_bytes - sum(tensor.stored_bytes for tensor in self.tensors)
        lines.append(f"{'tokenizer, configs, header':32}{'':14}{rest / 1e6:>14,.1f}")
        lines.append(f"{'file':32}{'':14}{self.file_bytes / 1e6:>14,.1f}   = {self.file_bytes / 2**30:.4f} GiB")
        summaries = list(self._errors())
        if summaries:
            lines += ["", f"{'quantised tensors':32}{'tensors':>14}{'SNR dB':>14}{'median':>8}{'lowest':>8}"]
            for _, title, summary in summaries:
                lines.append(
                    f"{title:32}{summary.n_tensors:>14}{summary.overall_db:>14.2f}"
                    f"{summary.median_db:>8.2f}{summary.lowest_db:>8.2f}"
                )
            lines += ["", "lowest of all:"]
            lines += [f"{tensor.error.snr_db:>8.2f} dB  {tensor.name}" for tensor in self._worst()]
        if self.spending is not None:
            lines += ["", self.spending.table()]
        lines += ["", f"{self.path}: recipe {self.recipe}, {len(self.tensors)} tensors, {self.seconds:.1f} s"]
        if self.on_grid:
            lines.append(
                f"{len(self.on_grid)} tensors lie on the grid of quantisation-aware training: nothing is lost but "
                "rounding that the source has already"
            )
        if self.dropped:
            lines.append(f"{len(self.dropped)} tensors that the model does not use were dropped")
        if self.tokenizer_path is not None:
            lines.append(f"{self.tokenizer_path}: the tokenizer, also inside the file")
        return "\n".join(lines)

    def _sizes(self) -> list[tuple[str, str, int, int]]:
        """Key, title, original and stored bytes of each part that the model has."""
        rows = []
        for key, title, components in _PARTS:
            stored = sum(tensor.stored_bytes for tensor in self.tensors if tensor.component in components)
            if stored:
                rows.append((key, title, sum(self.original_bytes.get(part, 0) for part in components), stored))
        return rows

    def _errors(self) -> list[tuple[str, str, ErrorSummary]]:
        rows = []
        for key, title, components in _PARTS:
            chosen = [tensor for tensor in self.tensors if tensor.quantised and tensor.component in components]
            if chosen:
                rows.append((key, title, ErrorSummary.of(chosen)))
        return rows

    def _worst(self) -> list[TensorReport]:
        quantised = [tensor for tensor in self.tensors if tensor.quantised]
        return sorted(quantised, key=lambda tensor: tensor.error.snr_db)[:_N_WORST]


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
