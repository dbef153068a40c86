"""A progress bar on stderr: done, in all, rate, time left."""

from __future__ import annotations

import sys
from typing import Any


class ProgressBar:
    """Counts bytes, or what `unit` says. A context manager; nothing is shown before the first update, or ever if not
    visible."""

    def __init__(self, title: str, total: int | None = None, *, visible: bool = True, unit: str = "B") -> None:
        self._title = title
        self._unit = unit
        self._total = total
        self._visible = visible
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, n_bytes: int) -> None:
        """n_bytes more are done."""
        if self._visible:
            self._shown().update(n_bytes)

    def reach(self, done: int, total: int, what: str) -> None:
        """`done` of `total` are done; `what` is in hand."""
        if self._visible:
            self._total = total
            bar = self._shown()
            if bar.total != total:  # another stage begins
                bar.reset(total)
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

    def _shown(self) -> Any:
        if self._bar is None:
            from tqdm import tqdm

            scaled = self._unit == "B"
            self._bar = tqdm(total=self._total, unit=self._unit, unit_scale=scaled, file=sys.stderr, desc=self._title)
        return self._bar
