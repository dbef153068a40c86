"""What is particular to an NVIDIA GPU: its memory, and work that comes again, recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cellmd.backends.cuda.attention import Cache, Ints
from cellmd.backends.cuda.graph import FEW_ROWS, Input, Recorder
from cellmd.backends.cuda.plain import TorchOps
from cellmd.backends.cuda.weights import on_device
from cellmd.backends.ops import Clip, Tensor
from cellmd.errors import BackendError, ContextLengthError
from cellmd.quant.tensor import PackedTensor

_WORKING_BYTES = 1 << 29
"""Beside the weights: activations of a chunk of a prompt, of recordings and of what is not recorded; torch's own."""


class CudaOps(TorchOps):
    """See `cellmd.backends.cuda.create`, which makes one."""

    name = "cuda"
    prompt_rows = 1024
    runs_ahead = True

    recorded_rows: tuple[int, ...] = FEW_ROWS
    """Numbers of rows that are recorded: attention in torch alone would gather the whole cache for each of many."""

    def __init__(self, device: str | torch.device = "cuda", *, tables_on_device: bool = False) -> None:
        super().__init__(device, tables_on_device=tables_on_device)
        self._tables_on_device = tables_on_device
        self._awaited: dict[str, int] = {}
        """Bytes of what is expected and not bound yet, by name."""
        self._recorder = Recorder(self.device)
        self._under_way: list[tuple[torch.cuda.Event, torch.Tensor]] = []
        """What is being sent to the host: memory that is written, whether or not anybody waits for it."""

    # ---- memory ---------------------------------------------------------------------------------------------------

    def expect(self, tensors: Iterable[PackedTensor]) -> None:
        self._awaited = {packed.name: packed.n_bytes for packed in self._moved(tensors)}
        needed = sum(self._awaited.values()) + _WORKING_BYTES
        free, total = torch.cuda.mem_get_info(self.device)
        if needed > free:
            raise BackendError(
                f"backend 'cuda': the weights need {needed >> 20} MiB of the device's memory, {free >> 20} MiB of "
                f"{total >> 20} MiB are free on {torch.cuda.get_device_name(self.device)}; free some, or use backend "
                "'cpu'"
            )

    @contextmanager
    def binding(self, tensors: Iterable[PackedTensor]) -> Iterator[None]:
        moved = self._moved(tensors)
        with self._upload.reading(moved):
            yield
        for packed in moved:
            self._awaited.pop(packed.name, None)

    def _moved(self, tensors: Iterable[PackedTensor]) -> list[PackedTensor]:
        return [packed for packed in tensors if self._tables_on_device or not _only_looked_up(packed)]

    def matrix(self, packed: PackedTensor, *, clip: Clip | None = None, bias: PackedTensor | None = None) -> Any:
        try:
            return super().matrix(packed, clip=clip, bias=bias)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"backend 'cuda': the device's memory is used up at tensor {packed.name!r}; free some, or use 'cpu'"
            ) from error

    def reserve_(self, cache: Cache, n_positions: int) -> None:
        try:
            moved = cache.grow(n_positions)
        except torch.OutOfMemoryError as error:
            raise ContextLengthError(
                f"the device has no memory for keys and values of {n_positions} positions; shorten the prompt, ask "
                "for fewer tokens, or answer fewer at once"
            ) from error
        if moved:  # what was recorded reads and writes the memory that was given up
            self._recorder.forget_rows()

    def free_bytes(self) -> int:
        free = int(torch.cuda.mem_get_info(self.device)[0]) + self._recorder.idle_bytes()
        return max(0, free - sum(self._awaited.values()))

    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_reserved(self.device))

    # ---- work that comes again ------------------------------------------------------------------------------------

    def replay(self, key: object, name: str, function: Callable[..., Any], inputs: Sequence[Input]) -> Any:
        n_rows = inputs[0].shape[0]
        n_recorded = next((n for n in self.recorded_rows if n >= n_rows), None)
        if n_recorded is None:
            return function(*inputs)
        return self._recorder.run(key, name, function, inputs, n_recorded)

    def replay_whole(self, key: object, name: object, function: Callable[..., Any], inputs: Sequence[Input]) -> Any:
        return self._recorder.run(key, name, function, inputs, None)

    def send(self, x: Tensor | Ints) -> Callable[[], Any]:
        device = x.device if isinstance(x, Ints) else x
        there = torch.empty(device.shape, dtype=device.dtype, pin_memory=True)
        # a kernel that writes over the bus: what follows would wait for a copy to begin and to end five times as long
        torch.bitwise_or(device.view(torch.int32), 0, out=on_device(there).view(torch.int32))
        sent = torch.cuda.Event()
        sent.record()
        self._under_way = [(sent, there), *(each for each in self._under_way if not each[0].query())]

        def arrived() -> Any:
            sent.synchronize()
            return there.numpy()

        return arrived


def _only_looked_up(packed: PackedTensor) -> bool:
    return packed.coding.quantised and packed.coding.layout == "row"
