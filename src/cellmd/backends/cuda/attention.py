"""The cache and attention in plain torch, for any device.

Rows come in two kinds. Of rows that follow one another in one sequence (a prompt) the host knows so, and they are
multiplied as matrices. All others (one row a sequence, when decoding) are gathered by their slots and positions, which
only the device needs to know, so that a recorded step can be run again with others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from cellmd.errors import ArgumentError

_QUERIES_AT_ONCE = 512
"""Rows of one sequence that attend together, at most: with a window W they look at W + 511 positions."""


class Ints:
    """An int32 tensor (of `TorchOps.numbers` float32) on the device, and on the host where its values are known there.
    What comes from the host goes to the device when it is needed there."""

    def __init__(self, where: torch.device, *, device: torch.Tensor | None = None, host: np.ndarray | None = None):
        self._where = where
        self._device = device
        self.host = host

    @property
    def device(self) -> torch.Tensor:
        if self._device is None:
            self._device = torch.from_numpy(self.host).to(self._where)
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        is_float = self.host.dtype == np.float32 if self.host is not None else self.device.is_floating_point()
        return torch.float32 if is_float else torch.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.device.shape) if self.host is None else self.host.shape

    def first(self, n: int) -> Ints:
        return Ints(self._where, device=self.device[:n])

    def take(self, rows: Ints) -> Ints:
        """The entries at `rows`, known on the host where both are."""
        if self.host is not None and rows.host is not None:
            return Ints(self._where, host=self.host[rows.host])
        return Ints(self._where, device=self.device.index_select(0, rows.device))


@dataclass(frozen=True)
class Run:
    """Rows first .. first + n of a batch are positions position .. position + n of the sequence in a slot."""

    slot: int
    first: int
    n: int
    position: int


class Cache:
    """Keys and values of one layer, (n_slots, places, Hkv, hd) each; position p of a sequence lies at p mod capacity.

    Memory for few places is taken at first, for more as `grow` is told of them.
    """

    def __init__(
        self, n_slots: int, capacity: int, n_kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.capacity = capacity
        self._shape = n_slots, n_kv_heads, head_dim
        places = min(capacity, _FIRST_PLACES)
        self.keys = torch.zeros((n_slots, places, n_kv_heads, head_dim), device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)

    @property
    def places(self) -> int:
        """How many there is memory for. While they are fewer than the capacity, no position lies beyond them."""
        return int(self.keys.shape[1])

    def grow(self, n_positions: int) -> bool:
        """Make room for a sequence of so many positions; whether keys and values have moved."""
        if n_positions <= self.places or self.places == self.capacity:
            return False
        places = self.places
        while places < n_positions:
            places *= 2
        places = min(places, self.capacity)
        self.keys, self.values = (self._grown(x, places) for x in (self.keys, self.values))
        return True

    def copy(self, source: int, target: int, n: int) -> None:
        n = min(n, self.places)
        self.keys[target, :n] = self.keys[source, :n]
        self.values[target, :n] = self.values[source, :n]

    def export(self, slot: int, n: int) -> np.ndarray:
        n = min(n, self.places)
        held = torch.stack([self.keys[slot, :n], self.values[slot, :n]]).cpu()
        exported: np.ndarray = held.view(torch.uint8).numpy().reshape(-1)
        return exported

    def take(self, slot: int, n: int, exported: np.ndarray) -> None:
        """There is room for the n positions already."""
        n = min(n, self.capacity)
        shape = (2, n, *self.keys.shape[2:])
        n_bytes = math.prod(shape) * self.keys.element_size()
        if exported.nbytes != n_bytes:
            raise ArgumentError(f"{n} positions take {n_bytes} bytes, not {exported.nbytes}")
        held = torch.from_numpy(exported.copy()).view(self.keys.dtype).view(shape)
        self.keys[slot, :n], self.values[slot, :n] = held.to(self.keys.device)

    def append(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        at = slots.long(), (positions % self.capacity).long()
        self.keys.index_put_(at, keys.to(self.keys.dtype))
        self.values.index_put_(at, values.to(self.values.dtype))

    def _grown(self, x: torch.Tensor, places: int) -> torch.Tensor:
        n_slots, n_kv_heads, head_dim = self._shape
        larger = torch.zeros((n_slots, places, n_kv_heads, head_dim), device=x.device, dtype=x.dtype)
        larger[:, : x.shape[1]] = x
        return larger


_FIRST_PLACES = 2048


def runs_of(slots: np.ndarray, positions: np.ndarray) -> list[Run]:
    """The rows of a batch as runs, in their order; a row that goes on nothing is a run of one."""
    if not len(slots):
        return []
    breaks = np.flatnonzero((np.diff(slots) != 0) | (np.diff(positions) != 1)) + 1
    firsts = [0, *breaks.tolist()]
    lasts = [*firsts[1:], len(slots)]
    return [
        Run(int(slots[first]), first, last - first, int(positions[first]))
        for first, last in zip(firsts, lasts, strict=True)
    ]


def causal(q: torch.Tensor, cache: Cache, slots: Ints, positions: Ints, window: int) -> torch.Tensor:
    """`Ops.attention`."""
    if slots.host is None or positions.host is None:
        return rows_apart(q, cache, slots.device, positions.device, window)
    runs = runs_of(slots.host, positions.host)
    long = [run for run in runs if run.n > 1]
    if not long:
        return rows_apart(q, cache, slots.device, positions.device, window)
    out = torch.empty_like(q)
    single = [run.first for run in runs if run.n == 1]
    if single:
        rows = torch.tensor(single, device=q.device)
        apart = rows_apart(q[rows], cache, slots.device[rows], positions.device[rows], window)
        out[rows] = apart
    for run in long:
        for start in range(0, run.n, _QUERIES_AT_ONCE):
            n = min(_QUERIES_AT_ONCE, run.n - start)
            rows_of_run = slice(run.first + start, run.first + start + n)
            out[rows_of_run] = _in_order(q[rows_of_run], cache, run.slot, run.position + start, window)
    return out


def rows_apart(
    q: torch.Tensor, cache: Cache, slots: torch.Tensor, positions: torch.Tensor, window: int
) -> torch.Tensor:
    """Each row by itself: q (N, H, hd), slots and positions int32 (N,) on the device. Nothing is read by the host."""
    n_rows, n_heads, head_dim = q.shape
    n_kv_heads = cache.keys.shape[2]
    if window and window < cache.places:
        seen = positions[:, None] - torch.arange(window - 1, -1, -1, device=q.device, dtype=torch.int32)
        exists = seen >= 0
        places = (seen % cache.capacity).clamp(max=cache.places - 1).long()
        keys, values = cache.keys[slots.long()[:, None], places], cache.values[slots.long()[:, None], places]
    else:
        # the position that lies at each place: the last one up to the row's own that is congruent to it
        place = torch.arange(cache.places, device=q.device, dtype=torch.int32)
        seen = positions[:, None] - (positions[:, None] - place) % cache.capacity
        exists = seen >= 0
        if window:
            exists &= seen > positions[:, None] - window
        keys, values = cache.keys.index_select(0, slots), cache.values.index_select(0, slots)
    grouped = q.reshape(n_rows, n_kv_heads, n_heads // n_kv_heads, head_dim).to(keys.dtype)
    scores = product(grouped, keys.permute(0, 2, 3, 1))
    scores = scores.masked_fill(~exists[:, None, None, :], -torch.inf)
    weights = torch.softmax(scores, dim=-1).to(values.dtype)
    return product(weights, values.transpose(1, 2)).reshape(n_rows, n_heads, head_dim)


def _in_order(q: torch.Tensor, cache: Cache, slot: int, position: int, window: int) -> torch.Tensor:
    """Rows of one sequence at positions position, position + 1, ...: q (n, H, hd)."""
    n_rows, n_heads, head_dim = q.shape
    n_kv_heads = cache.keys.shape[2]
    last = position + n_rows
    first = max(0, position - window + 1) if window else 0
    seen = torch.arange(first, last, device=q.device)
    if last <= cache.capacity:
        keys, values = cache.keys[slot, first:last], cache.values[slot, first:last]
    else:
        places = seen % cache.capacity
        keys, values = cache.keys[slot, places], cache.values[slot, places]
    own = torch.arange(position, last, device=q.device)[:, None]
    hidden = seen > own
    if window:
        hidden |= seen <= own - window
    readers = n_heads // n_kv_heads
    grouped = q.reshape(n_rows, n_kv_heads, readers, head_dim).permute(1, 2, 0, 3).to(keys.dtype)
    scores = product(grouped.reshape(n_kv_heads, readers * n_rows, head_dim), keys.permute(1, 2, 0))
    scores = scores.reshape(n_kv_heads, readers, n_rows, -1).masked_fill_(hidden, -torch.inf)
    weights = torch.softmax(scores, dim=-1).to(values.dtype).reshape(n_kv_heads, readers * n_rows, -1)
    attended = product(weights, values.transpose(0, 1)).reshape(n_kv_heads, readers, n_rows, head_dim)
    return attended.permute(2, 0, 1, 3).reshape(n_rows, n_heads, head_dim)


def bidirectional(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`Ops.attention_bidirectional`, products and result in `dtype`."""
    q, k, v = (x.transpose(0, 1).to(dtype) for x in (q, k, v))
    if dtype == torch.float32:
        attended = torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v
    else:
        attended = functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0]
    return attended.transpose(0, 1).contiguous()


def relative(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    relative_keys: torch.Tensor,
    *,
    past: int,
    future: int,
    cap: float,
) -> torch.Tensor:
    """`Ops.attention_relative`: each row's seen rows are gathered by their distance, (N, W, H, hd)."""
    n_rows, device = len(q), q.device
    distances = torch.arange(past - 1, -max(future, 1), -1, device=device)
    seen = torch.arange(n_rows, device=device)[:, None] - distances
    exists = (seen >= 0) & (seen < n_rows)
    seen = seen.clamp(0, n_rows - 1)
    places = past - distances
    known = places < len(relative_keys)
    biases = relative_keys[places.clamp(max=len(relative_keys) - 1)] * known[:, None, None]
    scores = ((k[seen] + biases) * q[:, None]).sum(-1)
    scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~exists[:, :, None], -torch.inf)
    weights = torch.softmax(scores, dim=1)
    return (weights[..., None] * v[seen]).sum(1)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix products of equal types over leading axes, summed and given in float32."""
    if a.dtype == torch.float32:
        return a @ b
    shape = (*a.shape[:-1], b.shape[-1])
    flat = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    return torch.bmm(*flat, out_dtype=torch.float32).reshape(shape)
