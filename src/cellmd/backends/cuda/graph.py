"""A step recorded as a CUDA graph, and run again with other integers: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cellmd.backends.cuda.attention import Ints

ROWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
"""Numbers of rows that are recorded; others are filled up to the next with the last row again."""

_STAGES = 4
"""Steps whose integers may be on their way to the device at once."""


class Recording:
    """function(*inputs) for n_rows rows.

    It is called twice with the first inputs: to compile what it calls, then to record it. pool: memory that recordings
    share; so results last until the next of them runs.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Ints], n_rows: int, device: torch.device, pool: Any
    ) -> None:
        self._values = torch.zeros((len(inputs), n_rows), dtype=torch.int32, device=device)
        self._stages = [
            (torch.zeros((len(inputs), n_rows), dtype=torch.int32, pin_memory=True), torch.cuda.Event())
            for _ in range(_STAGES)
        ]
        self._n_runs = 0
        rows = [Ints(device, device=row) for row in self._values]
        self._fill(inputs)
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            function(*rows)
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._results = function(*rows)

    def run(self, inputs: Sequence[Ints]) -> Any:
        """What the function gives for inputs of at most n_rows rows."""
        self._fill(inputs)
        self._graph.replay()
        return _first_rows(self._results, inputs[0].shape[0])

    def _fill(self, inputs: Sequence[Ints]) -> None:
        n_rows = inputs[0].shape[0]
        known = [ints.host for ints in inputs if ints.host is not None]
        if len(known) == len(inputs):
            memory, sent = self._stages[self._n_runs % _STAGES]
            self._n_runs += 1
            sent.synchronize()
            values = memory.numpy()
            np.stack(known, out=values[:, :n_rows])
            values[:, n_rows:] = values[:, n_rows - 1 : n_rows]
            self._values.copy_(memory, non_blocking=True)
            sent.record()
            return
        for row, ints in zip(self._values, inputs, strict=True):
            row[:n_rows] = ints.device
            row[n_rows:] = ints.device[-1]


def _first_rows(results: Any, n_rows: int) -> Any:
    if isinstance(results, tuple):
        return tuple(_first_rows(result, n_rows) for result in results)
    return results.first(n_rows) if isinstance(results, Ints) else results[:n_rows]
