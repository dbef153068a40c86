"""Work that comes again, recorded as CUDA graphs: one launch instead of hundreds.

The first time a size comes, the work is just done; the second time it is recorded, and done from the recording from
then on. So what never comes again is not recorded, and what is recorded has been compiled and loaded before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from cellmd.backends.cuda.attention import Ints

FEW_ROWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
MANY_ROWS = (96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of rows that are recorded; others are filled up to the next with the last row again."""

_POOL_BYTES = 80 << 20
"""What 1,024 rows of a prompt of Gemma 4 E2B need. Taken at once, so that any size finds its room in it; more is added
where it is too little."""

_IDLE_BYTES = 32 << 20
"""More memory than this is given back before a size is run for the first time, which may need it in other pieces."""

_MOST_RECORDINGS = 64
"""For one key; the one that was used the longest time ago goes first."""

_STAGES = 4
"""Runs whose integers may be on their way to the device at once."""

Input = Any
"""`Ints`, or a float32 tensor."""


class Recorder:
    """All recordings of a backend. They share a stream to be recorded on, the memory of what is computed on the way (so
    results last until another recording runs), and that of their inputs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._pool_holder: torch.cuda.CUDAGraph | None = None
        self._floats: dict[tuple[int, ...], torch.Tensor] = {}
        self._of_rows: WeakKeyDictionary[Any, dict[object, Recording]] = WeakKeyDictionary()
        self._whole: WeakKeyDictionary[Any, dict[object, Recording]] = WeakKeyDictionary()

    def run(
        self, key: object, name: object, function: Callable[..., Any], inputs: Sequence[Input], n_rows: int | None
    ) -> Any:
        """function(*inputs). n_rows: it is called with so many rows, the last of the inputs repeated; None: with as
        many as there are, in inputs of these shapes. key, name: as for `Ops.replay`."""
        recordings = (self._of_rows if n_rows else self._whole).setdefault(key, {})
        kind = name, n_rows or tuple(tuple(x.shape) for x in inputs)
        recording = recordings.pop(kind, None)
        if recording is None:
            recording = Recording(self, inputs, n_rows)
            if len(recordings) == _MOST_RECORDINGS:
                del recordings[next(iter(recordings))]
        recordings[kind] = recording  # the last in their order
        return recording.run(function, inputs)

    def forget_rows(self) -> None:
        """Drop the recordings of rows: the caches that they read and write have moved."""
        self._of_rows.clear()

    def record(self, work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """What is launched, and the results, which are there once it has run."""
        if self._pool_holder is None:
            self._pool_holder, _ = self._recorded(
                lambda: torch.zeros(_POOL_BYTES, dtype=torch.uint8, device=self._device)
            )
        return self._recorded(work)

    def _recorded(self, work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            results = work()
        return graph, results

    def idle_bytes(self) -> int:
        """Memory that torch holds and nobody uses, but for that of recordings."""
        idle = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return max(0, int(idle) - (0 if self._pool_holder is None else _POOL_BYTES))

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """What is launched now runs on the stream of recordings, whose libraries' memory it then shares, after all that
        was launched before and before all that comes. Memory that lies idle is given back first, if it is much."""
        if self.idle_bytes() > _IDLE_BYTES:
            torch.cuda.empty_cache()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def floats(self, index: int, n_rows: int, width: int) -> torch.Tensor:
        """Memory (n_rows, width) of the input at an index, the same for all recordings of rows."""
        most = (FEW_ROWS if n_rows <= FEW_ROWS[-1] else MANY_ROWS)[-1]
        key = index, most, width
        if key not in self._floats:
            self._floats[key] = torch.empty((most, width), dtype=torch.float32, device=self._device)
        return self._floats[key][:n_rows]


class Recording:
    """What functions do with inputs like these: of n_rows rows, or, if that is None, of as many as these have."""

    def __init__(self, recorder: Recorder, inputs: Sequence[Input], n_rows: int | None) -> None:
        self._recorder = recorder
        self._by_row = n_rows is not None
        self._here = threading.local()
        self._fits = True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: Any = None
        self._n_runs = 0
        n_rows = n_rows or inputs[0].shape[0]
        self._floats = [
            recorder.floats(i, n_rows, x.shape[1]) if self._by_row else torch.empty_like(x)
            for i, x in enumerate(inputs)
            if isinstance(x, torch.Tensor)
        ]
        shape = sum(isinstance(x, Ints) for x in inputs), n_rows
        self._ints = torch.zeros(shape, dtype=torch.int32, device=_device_of(inputs[0]))
        self._staged = torch.zeros((_STAGES, *shape), dtype=torch.int32, pin_memory=True)
        self._sent = [torch.cuda.Event() for _ in range(_STAGES)]

    def run(self, function: Callable[..., Any], inputs: Sequence[Input]) -> Any:
        """What the function gives for inputs of at most so many rows."""
        self._fill(inputs)
        if self._graph is None and self._fits and hasattr(self._here, "has_run"):
            try:
                self._graph, self._results = self._recorder.record(lambda: function(*self._in_order(inputs)))
            except torch.OutOfMemoryError:
                self._fits = False
        if self._graph is None:
            self._here.has_run = True  # a thread's own handles of cuBLAS and cuDNN cannot be made while it records
            with self._recorder.unrecorded():
                results = function(*self._in_order(inputs))
        else:
            self._graph.replay()
            results = self._results
        return _first_rows(results, inputs[0].shape[0]) if self._by_row else results

    def _in_order(self, inputs: Sequence[Input]) -> list[Input]:
        """Our memory in place of the inputs: new views of it, since a function may put a view elsewhere."""
        floats, ints = iter(self._floats), iter(self._ints)
        return [
            Ints(self._ints.device, device=next(ints).view(x.dtype)) if isinstance(x, Ints) else next(floats)[:]
            for x in inputs
        ]

    def _fill(self, inputs: Sequence[Input]) -> None:
        """Copy the inputs into our memory, the last row into all that follow it too. The integers that the host knows
        go in one copy."""
        n_rows = inputs[0].shape[0]
        for ours, x in zip(self._floats, (x for x in inputs if isinstance(x, torch.Tensor)), strict=True):
            ours[:n_rows] = x
            ours[n_rows:] = x[-1]
        ints = [x for x in inputs if isinstance(x, Ints)]
        if any(x.host is not None for x in ints):
            memory, sent = self._staged[self._n_runs % _STAGES], self._sent[self._n_runs % _STAGES]
            self._n_runs += 1
            sent.synchronize()
            values = memory.numpy()
            for row, x in zip(values, ints, strict=True):
                if x.host is not None:
                    row[:n_rows] = x.host.view(np.int32)
                    row[n_rows:] = row[n_rows - 1]
            self._ints.copy_(memory, non_blocking=True)
            sent.record()
        for row, x in zip(self._ints, ints, strict=True):
            if x.host is None:
                row[:n_rows] = x.device
                row[n_rows:] = x.device[-1]


def _device_of(x: Input) -> torch.device:
    device: torch.device = x.device.device if isinstance(x, Ints) else x.device
    return device


def _first_rows(results: Any, n_rows: int) -> Any:
    if isinstance(results, tuple):
        return tuple(_first_rows(result, n_rows) for result in results)
    return results.first(n_rows) if isinstance(results, Ints) else results[:n_rows]
