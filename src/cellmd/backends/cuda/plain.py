"""The operations of `backends/ops.py` in torch alone, on any device that torch knows.

On the CPU everything is float32: this is what development and CI hold against `reference`. On a GPU matrices are
multiplied in bfloat16 and summed in float32; the residual stream and everything else is float32. `operations.py` puts
kernels of our own in place of what is slow here.

Results of one row are the same for any company and chunking to rounding, not bit for bit: torch's products order their
sums by the number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from cellmd.backends.cuda import attention as attend
from cellmd.backends.cuda.attention import Cache, Ints
from cellmd.backends.cuda.weights import DeviceMatrix, DeviceTable, Repack, Upload, repack_int4
from cellmd.backends.ops import Clip, Ops, Tensor
from cellmd.errors import ArgumentError
from cellmd.quant.decode import decode
from cellmd.quant.tensor import PackedTensor

_LOWEST = -(1 << 31)

_CAPACITY_STEP = 16

DECODED_BYTES = 1 << 27
"""Of a matrix that is multiplied as decoded numbers, at most this much is decoded at a time."""


class TorchOps(Ops):
    """A torch tensor is the tensor, `Ints` a tensor of integers, `DeviceMatrix` the matrix, `Cache` the cache.

    tables_on_device: keep tables of which only rows are looked up there too, not on the host.
    """

    name = "torch"
    _repack: Repack = staticmethod(repack_int4)

    def __init__(self, device: str | torch.device = "cpu", *, tables_on_device: bool = False) -> None:
        self.device = torch.device(device)
        self._products = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self._upload = Upload(self.device, self._products, self._repack, tables_on_device=tables_on_device)
        self._frequencies: dict[tuple[float, int, int, float], torch.Tensor] = {}

    # ---- memory ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Every result owns its memory here, so nothing is overwritten."""

    def matrix(self, packed: PackedTensor, *, clip: Clip | None = None, bias: PackedTensor | None = None) -> Any:
        return self._upload.matrix(packed, clip=clip, bias=None if bias is None else self.array(bias))

    def table(self, packed: PackedTensor) -> Any:
        return self._upload.table(packed)

    def rows_of(self, matrix: DeviceMatrix, start: int, stop: int) -> DeviceMatrix:
        return matrix.rows(start, stop)

    def array(self, packed: PackedTensor) -> Tensor:
        return self.floats(decode(packed))

    def number(self, packed: PackedTensor) -> float:
        return float(decode(packed).item())  # which never was on the device

    def ints(self, values: Sequence[int]) -> Ints:
        return Ints(self.device, host=np.array(values, dtype=np.int32))

    def floats(self, values: Any) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(np.array(values, dtype=np.float32))
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values))).to(
            self.device
        )

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def keep(self, x: Tensor) -> Tensor:
        return x.clone()

    def to_numpy(self, x: Tensor | Ints) -> Any:
        if isinstance(x, Ints):
            return x.device.cpu().numpy().copy()
        return x.float().cpu().numpy().copy()

    # ---- running ahead ----------------------------------------------------------------------------------------------

    def numbers(self, values: Sequence[float]) -> Ints:
        return Ints(self.device, host=np.array(values, dtype=np.float32))

    def guess(
        self, values: Tensor, ids: Ints, temperature: Ints, top_k: Ints, top_p: Ints, min_p: Ints, number: Ints
    ) -> tuple[Ints, Ints]:
        places = torch.arange(values.shape[1], device=values.device)
        likely = ((values - values[:, :1]) / temperature.device[:, None]).exp()
        likely = likely * (places < top_k.device[:, None])
        likely /= likely.sum(1, keepdim=True)
        before = likely.cumsum(1) - likely
        kept = likely * ((before < top_p.device[:, None]) & (likely >= min_p.device[:, None] * likely[:, :1]))
        drawn = number.device[:, None] * kept.sum(1, keepdim=True)
        place = ((kept.cumsum(1) <= drawn) & (kept > 0)).sum(1).clamp(max=(kept > 0).sum(1) - 1)
        chosen = ids.device.gather(1, place[:, None])
        report = torch.cat([chosen, ids.device, values.view(torch.int32)], dim=1)
        return Ints(self.device, device=chosen[:, 0]), Ints(self.device, device=report)

    # ---- rows -----------------------------------------------------------------------------------------------------

    def embed(
        self, table: DeviceMatrix | DeviceTable, ids: Ints, scale: float, start: int = 0, stop: int | None = None
    ) -> Tensor:
        rows = table.gather(ids.device, start, table.shape[1] if stop is None else stop)
        return rows * scale

    def take_rows(self, x: Tensor | Ints, rows: Ints) -> Tensor | Ints:
        return x.take(rows) if isinstance(x, Ints) else x.index_select(0, rows.device)

    def put_rows_(self, x: Tensor, rows: Ints, values: Tensor) -> Tensor:
        x[rows.device.long()] = values
        return x

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.view(shape)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        return x[:, start:stop]

    # ---- dense ----------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, matrix: DeviceMatrix) -> Tensor:
        y = self._product(self._operand(x, matrix.clip), matrix)
        if matrix.bias is not None:
            y += matrix.bias
        return y if matrix.clip is None else y.clamp_(*matrix.clip[2:])

    def _operand(self, x: Tensor, clip: Clip | None) -> Tensor:
        """x as it is multiplied."""
        return (x if clip is None else x.clamp(*clip[:2])).to(self._products)

    def _product(self, x: Tensor, matrix: DeviceMatrix) -> Tensor:
        n_rows, n_columns = matrix.shape
        step = max(16, DECODED_BYTES // (n_columns * x.element_size()) // 16 * 16)
        if n_rows <= step:
            return attend.product(x[None], matrix.decoded(x.dtype).t()[None])[0]
        y = torch.empty((x.shape[0], n_rows), dtype=torch.float32, device=x.device)
        for start in range(0, n_rows, step):
            part = matrix.rows(start, min(start + step, n_rows))
            y[:, start : start + step] = attend.product(x[None], part.decoded(x.dtype).t()[None])[0]
        return y

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weight, None, eps)

    # ---- elementwise ----------------------------------------------------------------------------------------------

    def add_(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        return x.add_(y if factor == 1.0 else y * factor)

    def scale_(self, x: Tensor, factor: float) -> Tensor:
        return x.mul_(factor)

    def affine(self, x: Tensor, factor: Tensor | float, offset: Tensor | float) -> Tensor:
        return (x + offset) * factor

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.gelu(gate, approximate="tanh") * up

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(x)

    def glu(self, x: Tensor) -> Tensor:
        return functional.glu(x, dim=-1)

    def relu(self, x: Tensor) -> Tensor:
        return x.relu()

    def softcap_(self, x: Tensor, cap: float) -> Tensor:
        return x.div_(cap).tanh_().mul_(cap)

    # ---- positions and attention ----------------------------------------------------------------------------------

    def rope_table(self, positions: Ints, base: float, rotary_dim: int, head_dim: int, stretch: float = 1.0) -> Tensor:
        angles = positions.device.float()[:, None] * self._frequencies_of(base, rotary_dim, head_dim, stretch)
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def _frequencies_of(self, base: float, rotary_dim: int, head_dim: int, stretch: float) -> Tensor:
        key = base, rotary_dim, head_dim, stretch
        frequencies = self._frequencies.get(key)
        if frequencies is None:
            exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(head_dim)
            powers = np.power(np.float64(base), exponents.astype(np.float64)).astype(np.float32)
            frequencies = self._frequencies[key] = self.floats(np.float32(1) / powers / np.float32(stretch))
        return frequencies

    def rope(self, x: Tensor, table: Tensor) -> Tensor:
        half, turning = x.shape[2] // 2, table.shape[2]
        cos, sin = table[:, None, 0], table[:, None, 1]
        a, b = x[:, :, :turning], x[:, :, half : half + turning]
        y = x.clone()
        y[:, :, :turning] = a * cos - b * sin
        y[:, :, half : half + turning] = b * cos + a * sin
        return y

    def rope_2d(self, x: Tensor, table_x: Tensor, table_y: Tensor) -> Tensor:
        half = x.shape[2] // 2
        return torch.cat([self.rope(x[:, :, :half], table_x), self.rope(x[:, :, half:], table_y)], dim=2)

    def new_cache(self, n_slots: int, capacity: int, n_kv_heads: int, head_dim: int) -> Cache:
        # Kernels are compiled once for all multiples of 16; a larger ring holds what a smaller one does.
        capacity = -(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP
        return Cache(n_slots, capacity, n_kv_heads, head_dim, self.device, self._products)

    def reserve_(self, cache: Cache, n_positions: int) -> None:
        cache.grow(n_positions)

    def copy_slot_(self, cache: Cache, source: int, target: int, n: int) -> None:
        cache.copy(source, target, n)

    def cache_form(self) -> str:
        code = hashlib.sha256()
        for source in sorted(Path(__file__).parent.rglob("*.py")):
            code.update(source.read_bytes())
        on = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.name} {on} {self._products} {torch.__version__} {code.hexdigest()}"

    def export_slot(self, cache: Cache, slot: int, n: int) -> np.ndarray:
        return cache.export(slot, n)

    def import_slot_(self, cache: Cache, slot: int, n: int, exported: np.ndarray) -> None:
        cache.take(slot, n, exported)

    def append_(self, cache: Cache, keys: Tensor, values: Tensor, slots: Ints, positions: Ints) -> None:
        cache.append(keys, values, slots.device, positions.device)

    def attention(self, q: Tensor, cache: Cache, slots: Ints, positions: Ints, window: int) -> Tensor:
        return attend.causal(q, cache, slots, positions, window)

    def attention_bidirectional(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend.bidirectional(q, k, v, self._products).float()

    def attention_relative(
        self, q: Tensor, k: Tensor, v: Tensor, relative_keys: Tensor, *, past: int, future: int, cap: float
    ) -> Tensor:
        return attend.relative(q, k, v, relative_keys, past=past, future=future, cap=cap)

    # ---- vocabulary -----------------------------------------------------------------------------------------------

    def top_k(self, logits: Tensor, k: int) -> tuple[Tensor, Ints]:
        n_columns = logits.shape[1]
        if not 1 <= k <= n_columns:
            raise ArgumentError(f"the {k} largest of {n_columns} columns; 1..{n_columns} are possible")
        # One integer orders by number first, then by column: the bits of a float32, those below zero turned round.
        bits = (logits + 0.0).view(torch.int32).long()
        order = torch.where(bits < 0, _LOWEST - bits, bits).masked_fill(logits.isnan(), _LOWEST)
        columns = torch.arange(n_columns - 1, -1, -1, device=logits.device)
        chosen = n_columns - 1 - (order * n_columns + columns).topk(k, dim=1).values % n_columns
        return logits.gather(1, chosen), Ints(self.device, device=chosen.int())

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        parts = (logits - logits.amax(dim=1, keepdim=True)).exp()
        return parts.sum(dim=1, dtype=torch.float64).log().float()

    # ---- convolution and pooling ----------------------------------------------------------------------------------

    def conv2d(self, x: Tensor, kernel: Tensor) -> Tensor:
        y = functional.conv2d(x.permute(2, 0, 1)[None], kernel, stride=2, padding=1)
        return y[0].permute(1, 2, 0).contiguous()

    def depthwise_conv1d(self, x: Tensor, kernel: Tensor) -> Tensor:
        width = kernel.shape[1]
        padded = functional.pad(x, (0, 0, width - 1, 0))
        y = padded[: x.shape[0]] * kernel[:, 0]
        for tap in range(1, width):
            y += padded[tap : tap + x.shape[0]] * kernel[:, tap]
        return y

    def pool_patches(self, x: Tensor, grid_width: int, size: int) -> Tensor:
        blocks = x.view(-1, size, grid_width // size, size, x.shape[1])
        return blocks.mean(dim=(1, 3)).view(-1, x.shape[1])
