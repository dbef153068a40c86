"""The two stages of training, as a table: everything in which they differ, all of it a function of the step."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT, FLOAT_CTC = -1, -2
KINDS = ("audio", "vision", "text")


@dataclass(frozen=True)
class Stage:
    """What is trained on and how; fractions are of the stage's steps."""

    steps: int
    split: str
    """Of pictures and films (see `data.py`)."""
    first_shard: int
    """Where the numbers of the samples start: the second stage hears no recording of the first again."""
    window: int
    """Of the sliding layers."""
    batch: dict[str, int]
    shares: dict[str, float]
    """In what share of the steps each kind takes part."""
    workers: dict[str, int]
    """Processes that make samples."""
    capacity: dict[str, int]
    """Samples that are kept to draw batches from."""
    peak: float
    """Of the learning rates."""
    level_until: float
    """From here the rates fall to zero in a straight line."""
    ctc_until: float
    int4_from: float
    weights: dict[str, float]
    """Of the losses."""
    ramp: int = 150
    """Steps until the rates are at their peak."""
    augment_by: float = 0.12
    """From nothing, sounds are augmented fully from here on."""

    def rate(self, step: int) -> float:
        """Of the learning rates' base values."""
        left = 1 - step / self.steps
        return self.peak * min(1.0, (step + 1) / self.ramp) * min(1.0, max(0.0, left / (1 - self.level_until)))

    def variant(self, step: int, choice: float) -> int:
        """CTC at first; INT4 weights three times in four later on, with scales for 64 columns, 128 or a row (0)."""
        progress = step / self.steps
        if progress < self.ctc_until:
            return FLOAT_CTC
        if progress < self.int4_from or choice < 0.25:
            return FLOAT
        return 64 if choice < 0.6 else (128 if choice < 0.8 else 0)

    def strength(self, step: int) -> float:
        """Of the sounds' augmentation."""
        return min(1.0, step / self.steps / self.augment_by) if self.augment_by else 1.0


STAGES = {
    1: Stage(
        steps=5200,
        split="train",
        first_shard=0,
        window=64,
        batch={"audio": 128, "image": 64, "film": 16, "text": 64},
        shares={"audio": 1.0, "vision": 1.0, "text": 0.35},
        workers={"audio": 7, "image": 4, "film": 2},
        capacity={"audio": 50_000, "image": 30_000, "film": 5_000},
        peak=1.0,
        level_until=0.4,
        ctc_until=0.4,
        int4_from=0.6,
        weights={"audio": 1.0, "ctc": 0.5, "image": 1.0, "film": 0.8, "text": 0.4, "cells": 0.5},
    ),
    2: Stage(
        steps=5600,
        split="pairs",
        first_shard=2000,
        window=128,
        batch={"audio": 96, "image": 28, "film": 32, "text": 64},
        shares={"audio": 0.5, "vision": 1.0, "text": 0.25},
        workers={"audio": 3, "image": 3, "film": 8},
        capacity={"audio": 50_000, "image": 20_000, "film": 8_000},
        peak=0.6,
        level_until=0.3,
        ctc_until=0.0,
        int4_from=0.4,
        weights={"audio": 1.0, "image": 1.0, "film": 1.2, "text": 0.4, "cells": 0.3, "motions": 0.5},
        augment_by=0.0,
    ),
}
