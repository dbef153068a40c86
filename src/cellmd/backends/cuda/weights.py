"""Stored tensors on the device: what becomes of a matrix, a table, and their scales.

Bytes go up as they lie in the file, a block of rows at a time, and are taken apart there: the host touches none. INT4
stays INT4 on the device. Scales are decoded, row factors folded in: float16 where that keeps each to its full 11 bits,
else float32. Tables, of which only rows are looked up, stay on the host, where the device reads them.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cellmd.backends.cuda import driver
from cellmd.backends.cuda.kernels.layout import n_pieces, pack_int4, unpack_int4
from cellmd.backends.ops import Clip
from cellmd.errors import BackendError
from cellmd.quant.layouts import padded_rows, row_bytes
from cellmd.quant.schemes import groups_of
from cellmd.quant.tensor import TILE_ROWS, Coding, PackedTensor

_BLOCK_CODES = 1 << 24
"""Weights that are taken apart at once: temporaries on the device stay below 100 MB."""

_ROW_STEP = 256
"""Blocks of rows start at multiples of this."""

_F16_SMALLEST, _F16_LARGEST = 2.0**-14, 65504.0
"""Between these float16 has its full precision."""

_LEAST_BETWEEN = 1 << 24
"""Bytes, of a table say, that are worth two ranges instead of one."""

_Bytes = tuple[int, int]
"""Addresses of host memory: the first, and that after the last."""

Repack = Callable[[torch.Tensor, torch.Tensor, int], None]

_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A weight matrix (M, K) on the device.

    bits 4: codes uint8 as `kernels.layout` packs them; 8: int8 (M, K); 16 and 32: the numbers themselves, no scales.
    scales: float16 or float32 (M, G), one for each `group_size` columns, the last group of a row maybe shorter.
    clip, bias: as for `Ops.matrix`; bias float32 (M,).
    """

    shape: tuple[int, int]
    bits: int
    codes: torch.Tensor
    scales: torch.Tensor | None = None
    group_size: int = 0
    clip: Clip | None = None
    bias: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> DeviceMatrix:
        """The outputs start..stop alone, sharing memory."""
        if stop - start == self.shape[0]:
            return self
        return replace(
            self,
            shape=(stop - start, self.shape[1]),
            codes=self.codes[start:stop],
            scales=None if self.scales is None else self.scales[start:stop],
            bias=None if self.bias is None else self.bias[start:stop],
        )

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights (M, K)."""
        return _scaled(self._values(self.codes), self.scales, self.group_size, dtype)

    def gather(self, ids: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Columns start..stop of the rows ids (N,): float32 (N, stop - start)."""
        scales = None if self.scales is None else self.scales.index_select(0, ids)
        values = self._values(self.codes.index_select(0, ids))
        return _scaled(values, scales, self.group_size, torch.float32)[:, start:stop]

    def _values(self, codes: torch.Tensor) -> torch.Tensor:
        return unpack_int4(codes, self.shape[1]) if self.bits == 4 else codes


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """A matrix (M, K) of which only rows are looked up. codes are the bytes of the file's `row` layout (M, B): int4
    has the even column in the low nibble, each value + 8. scales (M, G) as they are stored, row_factors float32 (M,) or
    None: the scale of a group is their product. Its tensors may lie on the host, seen by the device."""

    shape: tuple[int, int]
    bits: int
    codes: torch.Tensor
    scales: torch.Tensor | None = None
    row_factors: torch.Tensor | None = None
    group_size: int = 0

    def gather(self, ids: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Columns start..stop of the rows ids (N,): float32 (N, stop - start)."""
        if self.scales is None:
            return self.codes[:, start:stop].index_select(0, ids).float()
        first_group, last_group = start // self.group_size, -(-stop // self.group_size)
        scales = self.scales[:, first_group:last_group].index_select(0, ids).float()
        if self.row_factors is not None:
            scales = scales * self.row_factors.index_select(0, ids)[:, None]
        if self.bits == 4:
            codes = self.codes[:, start // 2 : (stop + 1) // 2].index_select(0, ids)
            values = _pairs(codes)[:, : stop - start]
        else:
            values = self.codes[:, start:stop].index_select(0, ids)
        skipped = start - first_group * self.group_size
        columns = torch.arange(skipped, skipped + stop - start, device=ids.device) // self.group_size
        return values.float() * scales[:, columns]


def repack_int4(stored: torch.Tensor, out: torch.Tensor, n_columns: int) -> None:
    """INT4 rows from uint8 bytes as they lie in the file, `tile16`, into out (M, B), as `kernels.layout` packs."""
    out.copy_(pack_int4(_codes(stored, (len(out), n_columns), Coding("i4", "tile16"))))


class Upload:
    """Moves stored tensors to one device. floats: what float matrices become there. repack: does what `repack_int4`
    does."""

    def __init__(self, device: torch.device, floats: torch.dtype, repack: Repack, *, tables_on_device: bool) -> None:
        self._device = device
        self._floats = floats
        self._repack = repack
        self._tables_on_device = tables_on_device or device.type != "cuda"
        self._pinned: list[_Bytes] = []

    @contextmanager
    def reading(self, tensors: Sequence[PackedTensor]) -> Iterator[None]:
        """Within, a CUDA device reads what is moved of these from the mapped file's own pages, where the driver can pin
        those: all at once, since each call of it takes a third of a millisecond."""
        for start, stop in _runs(tensors):
            if not driver.pin(start, stop - start, read_only=True):
                self._pinned.append((start, stop))
        try:
            yield
        finally:
            torch.cuda.current_stream(self._device).synchronize()
            while self._pinned:
                torch.cuda.cudart().cudaHostUnregister(self._pinned.pop()[0])

    def matrix(self, packed: PackedTensor, *, clip: Clip | None, bias: torch.Tensor | None) -> DeviceMatrix:
        coding, shape = packed.coding, _shape(packed)
        n_rows, n_columns = shape
        if not coding.quantised:
            numbers = self._moved(packed.data).view(_FLOATS[coding.dtype]).reshape(shape).to(self._floats)
            return DeviceMatrix(shape, 8 * numbers.element_size(), numbers, clip=clip, bias=bias)
        bits = 4 if coding.dtype == "i4" else 8
        step = max(_ROW_STEP, _BLOCK_CODES // n_columns // _ROW_STEP * _ROW_STEP)
        width = row_bytes(n_columns, coding.dtype, coding.layout)
        kept_width, kind = (64 * n_pieces(n_columns), torch.uint8) if bits == 4 else (n_columns, torch.int8)
        codes = torch.empty((n_rows, kept_width), dtype=kind, device=self._device)
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            stored = self._moved(packed.data[start * width : padded_rows(stop, coding.layout) * width])
            if bits == 4 and coding.layout == "tile16":
                self._repack(stored, codes[start:stop], n_columns)
            else:
                block = _codes(stored, (stop - start, n_columns), coding)
                codes[start:stop] = pack_int4(block) if bits == 4 else block
        scales = self._scales(packed, shape)
        return DeviceMatrix(shape, bits, codes, scales, coding.group_size or n_columns, clip, bias)

    def table(self, packed: PackedTensor) -> DeviceTable | DeviceMatrix:
        coding, shape = packed.coding, _shape(packed)
        if coding.quantised and coding.layout != "row":
            return self.matrix(packed, clip=None, bias=None)
        kept = self._moved if self._tables_on_device else _pinned
        if not coding.quantised:
            numbers = kept(packed.data).view(_FLOATS[coding.dtype]).reshape(shape)
            return DeviceTable(shape, 8 * numbers.element_size(), numbers)
        assert packed.scales is not None
        assert coding.scale_dtype is not None
        codes = kept(packed.data).view(torch.uint8 if coding.dtype == "i4" else torch.int8).reshape(shape[0], -1)
        scales = _numbers(kept(_bytes(packed.scales)), coding.scale_dtype).reshape(shape[0], -1)
        factors = None if packed.row_factors is None else kept(_bytes(packed.row_factors)).view(torch.float32)
        bits = 4 if coding.dtype == "i4" else 8
        return DeviceTable(shape, bits, codes, scales, factors, coding.group_size or shape[1])

    def _scales(self, packed: PackedTensor, shape: tuple[int, int]) -> torch.Tensor:
        coding = packed.coding
        assert packed.scales is not None
        assert coding.scale_dtype is not None
        n_groups = groups_of(shape[1], coding)
        scales = _numbers(self._moved(_bytes(packed.scales)), coding.scale_dtype)
        if coding.layout == "row":
            scales = scales.reshape(shape[0], n_groups)
        else:
            tiles = scales.reshape(-1, n_groups, TILE_ROWS)
            scales = tiles.transpose(1, 2).reshape(-1, n_groups).contiguous()  # a single tile would stay as it is
        scales = scales[: shape[0]]
        if packed.row_factors is None:
            scales = scales.float()
        else:
            scales = scales * self._moved(_bytes(packed.row_factors)).view(torch.float32)[: shape[0], None]
        if self._floats != torch.float32 and (coding.scale_dtype == "f16" or _fit_float16(scales)):
            scales = scales.half()
        return scales

    def _moved(self, data: np.ndarray) -> torch.Tensor:
        """uint8 (n,) of the mapped file, on the device, or on its way there."""
        first, last = _place(data)
        if not any(start <= first and last <= stop for start, stop in self._pinned):
            return torch.from_numpy(data.copy()).to(self._device)  # no copy begins in pinned memory and ends in other
        # torch has no tensors that nobody may write; this one is only read
        stored = torch.frombuffer((ctypes.c_uint8 * data.size).from_address(first), dtype=torch.uint8)
        return stored.to(self._device, non_blocking=True)


class _SeenByDevice:
    """Pinned host memory, as what another library would hand over: torch makes a tensor of the device of it, without a
    copy, and keeps this object, with the memory, as long as that lives."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": memory.shape,
            "typestr": memory.dtype.str,
            "data": (memory.ctypes.data, False),
            "version": 2,
        }


def on_device(pinned: torch.Tensor) -> torch.Tensor:
    """Pinned host memory as a tensor of the device, without a copy: every access goes over the bus."""
    return torch.as_tensor(_SeenByDevice(pinned.numpy()), device="cuda")


def _pinned(data: np.ndarray) -> torch.Tensor:
    """uint8 (n,) of the mapped file in pinned host memory, as a tensor of the device. Every access goes over the bus.

    The file's own pages, where the driver can pin those; else a copy. torch's own pinned memory comes in powers of two.
    """
    torch.cuda.mem_get_info()  # the driver's calls are of the context that torch's bind to this thread
    first, last = _place(data)
    first -= first % mmap.PAGESIZE
    memory, failed = data, driver.pin(first, last - first, read_only=True)
    if failed:
        memory = data.copy()
        first = memory.ctypes.data
        failed = driver.pin(first, memory.nbytes)
    if failed:
        raise BackendError(
            f"backend 'cuda': {data.nbytes >> 20} MiB of host memory cannot be pinned (CUDA error {failed}); set "
            "CELLMD_CUDA_TABLES=device to keep tables in the device's memory"
        )
    seen = _SeenByDevice(memory)
    weakref.finalize(seen, torch.cuda.cudart().cudaHostUnregister, first)
    return torch.as_tensor(seen, device="cuda")


def _place(array: np.ndarray) -> _Bytes:
    return array.ctypes.data, array.ctypes.data + array.nbytes


def _runs(tensors: Sequence[PackedTensor]) -> list[_Bytes]:
    """The whole pages of quantised tensors, and of what little lies between two of them."""
    runs: list[_Bytes] = []
    for first, last in sorted(_place(packed.data) for packed in tensors if packed.coding.quantised):
        if runs and first - runs[-1][1] < _LEAST_BETWEEN:
            runs[-1] = runs[-1][0], last
        else:
            runs.append((first, last))
    whole = ((first + -first % mmap.PAGESIZE, last - last % mmap.PAGESIZE) for first, last in runs)
    return [(start, stop) for start, stop in whole if start < stop]


def _codes(stored: torch.Tensor, shape: tuple[int, int], coding: Coding) -> torch.Tensor:
    """uint8 bytes of a block of rows as they lie in the file -> int8 (M, K)."""
    n_rows, n_columns = shape
    if coding.layout == "row":
        if coding.dtype == "i8":
            return stored.view(torch.int8).reshape(shape)
        return _pairs(stored.reshape(n_rows, -1))[:, :n_columns]
    words = stored.reshape(-1, row_bytes(n_columns, coding.dtype, coding.layout) // 4, TILE_ROWS, 4)
    if coding.dtype == "i4":
        words = torch.cat([words & 15, words >> 4], dim=3).view(torch.int8) - 8
    else:
        words = words.view(torch.int8)
    rows = words.transpose(1, 2).reshape(words.shape[0] * TILE_ROWS, -1)
    return rows[:n_rows, :n_columns]


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """uint8 (N, B), two columns a byte, the even one in the low nibble -> int8 (N, 2 B)."""
    return torch.stack([codes & 15, codes >> 4], dim=2).view(torch.int8).reshape(codes.shape[0], -1) - 8


def _scaled(values: torch.Tensor, scales: torch.Tensor | None, group_size: int, dtype: torch.dtype) -> torch.Tensor:
    """values (N, K) times the scales (N, G) of their groups."""
    if scales is None:
        return values.to(dtype)
    n_rows, n_columns = values.shape
    if n_columns == scales.shape[1] * group_size:
        grouped = values.reshape(n_rows, scales.shape[1], group_size).float() * scales.float()[..., None]
        return grouped.reshape(n_rows, n_columns).to(dtype)
    return (values.float() * scales.float().repeat_interleave(group_size, dim=1)[:, :n_columns]).to(dtype)


def _fit_float16(scales: torch.Tensor) -> bool:
    """Whether float16 keeps each of them to its full 11 bits, or is 0 as it is."""
    least, most = scales.abs().masked_fill_(scales == 0, 1.0).aminmax()
    return bool((least >= _F16_SMALLEST) & (most <= _F16_LARGEST))


def _numbers(stored: torch.Tensor, scale_dtype: str) -> torch.Tensor:
    """Bytes of stored scales as numbers: those themselves, or the codes that row factors multiply."""
    return stored.view(_FLOATS.get(scale_dtype, torch.int8))


def _shape(packed: PackedTensor) -> tuple[int, int]:
    n_rows = 1
    for size in packed.shape[:-1]:
        n_rows *= size
    return n_rows, packed.shape[-1]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
