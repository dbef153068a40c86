"""How far a stored tensor is from its source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ErrorStats:
    """Sums over the numbers of a tensor or of a part of it; parts are joined by `+`.

    count: numbers compared. max_abs: the largest absolute error. error_energy, signal_energy: sums of squares of the
    errors and of the source.
    """

    count: int = 0
    max_abs: float = 0.0
    error_energy: float = 0.0
    signal_energy: float = 0.0

    @classmethod
    def of(cls, decoded: np.ndarray, source: np.ndarray) -> ErrorStats:
        """decoded and source: float32 of one shape. An infinite bound that is kept is no error, and no signal."""
        flat = source.ravel()
        with np.errstate(invalid="ignore"):
            difference = (decoded - source).ravel()
        infinite = np.isinf(flat)
        if infinite.any():
            difference[decoded.ravel() == flat] = 0
            flat = np.where(infinite, 0, flat)
        return cls(
            count=flat.size,
            max_abs=float(np.abs(difference).max(initial=0.0)),
            error_energy=float(np.square(difference, dtype=np.float64).sum()),
            signal_energy=float(np.square(flat, dtype=np.float64).sum()),
        )

    def __add__(self, other: ErrorStats) -> ErrorStats:
        return ErrorStats(
            self.count + other.count,
            max(self.max_abs, other.max_abs),
            self.error_energy + other.error_energy,
            self.signal_energy + other.signal_energy,
        )

    @property
    def rms(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.error_energy / self.count) if self.count else 0.0

    @property
    def snr_db(self) -> float:
        """10 log10(signal / error); infinite where nothing was lost."""
        if self.error_energy == 0.0:
            return math.inf
        if self.signal_energy == 0.0:
            return -math.inf
        return 10 * (math.log10(self.signal_energy) - math.log10(self.error_energy))

    def as_json(self) -> dict[str, float | None]:
        """max_abs, rms and snr_db to five figures, for a container's `quality`; null where one is infinite."""
        figures = {"max_abs": self.max_abs, "rms": self.rms, "snr_db": self.snr_db}
        return {name: float(f"{value:.5g}") if math.isfinite(value) else None for name, value in figures.items()}
