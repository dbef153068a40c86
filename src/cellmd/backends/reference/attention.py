"""Attention over a ring cache, over everything, and with relative positions."""

from __future__ import annotations

import numpy as np

from cellmd.backends.ops import Tensor
from cellmd.errors import ArgumentError

F32 = np.float32

_SCORES_AT_ONCE = 1 << 24
"""Scores held at a time (64 MB): queries are taken in blocks of as many rows as fit."""


class Cache:
    """Keys and values of one layer: (n_slots, capacity, Hkv, hd) each, position p of a sequence at p mod capacity.

    `np.zeros` takes pages as they are written, so an unused part of the capacity costs nothing.
    """

    def __init__(self, n_slots: int, capacity: int, n_kv_heads: int, head_dim: int) -> None:
        self.capacity = capacity
        self.keys = np.zeros((n_slots, capacity, n_kv_heads, head_dim), dtype=F32)
        self.values = np.zeros((n_slots, capacity, n_kv_heads, head_dim), dtype=F32)

    def copy(self, source: int, target: int, n: int) -> None:
        n = min(n, self.capacity)
        self.keys[target, :n] = self.keys[source, :n]
        self.values[target, :n] = self.values[source, :n]

    def export(self, slot: int, n: int) -> Tensor:
        n = min(n, self.capacity)
        return np.stack([self.keys[slot, :n], self.values[slot, :n]]).reshape(-1).view(np.uint8)

    def take(self, slot: int, n: int, exported: Tensor) -> None:
        held = np.stack([self.keys[slot, : min(n, self.capacity)], self.values[slot, : min(n, self.capacity)]])
        if exported.nbytes != held.nbytes:
            raise ArgumentError(f"{n} positions take {held.nbytes} bytes, not {exported.nbytes}")
        self.keys[slot, : held.shape[1]], self.values[slot, : held.shape[1]] = exported.view(F32).reshape(held.shape)

    def append(self, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> None:
        places = positions % self.capacity
        self.keys[slots, places] = keys
        self.values[slots, places] = values


def causal(q: Tensor, cache: Cache, slots: Tensor, positions: Tensor, window: int) -> Tensor:
    """`Ops.attention`, one sequence of the batch after another."""
    out = np.empty_like(q)
    for slot in np.unique(slots):
        rows = np.flatnonzero(slots == slot)
        for block in _query_blocks(rows, q.shape[1] * (int(positions[rows].max()) + 1)):
            out[block] = _causal_rows(q[block], cache, int(slot), positions[block], window)
    return out


def _causal_rows(q: Tensor, cache: Cache, slot: int, positions: Tensor, window: int) -> Tensor:
    """Rows of one sequence: q (n, H, hd), positions (n,)."""
    first = max(0, int(positions.min()) - window + 1) if window else 0
    seen = np.arange(first, int(positions.max()) + 1)
    places = seen % cache.capacity
    hidden = seen[None, :] > positions[:, None]
    if window:
        hidden |= seen[None, :] <= positions[:, None] - window
    n_kv_heads = cache.keys.shape[2]
    n_rows, n_heads, head_dim = q.shape
    readers = n_heads // n_kv_heads
    out = np.empty_like(q)
    for head in range(n_kv_heads):
        keys, values = cache.keys[slot, places, head], cache.values[slot, places, head]
        group = slice(head * readers, (head + 1) * readers)
        scores = (q[:, group].reshape(-1, head_dim) @ keys.T).reshape(n_rows, readers, -1)
        scores[np.broadcast_to(hidden[:, None], scores.shape)] = -np.inf
        weights = _softmax(scores).reshape(n_rows * readers, -1)
        out[:, group] = (weights @ values).reshape(n_rows, readers, head_dim)
    return out


def bidirectional(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`Ops.attention_bidirectional`."""
    out = np.empty_like(q)
    for block in _query_blocks(np.arange(len(q)), len(k)):
        for head in range(q.shape[1]):
            out[block, head] = _softmax(q[block, head] @ k[:, head].T) @ v[:, head]
    return out


def relative(q: Tensor, k: Tensor, v: Tensor, relative_keys: Tensor, *, past: int, future: int, cap: float) -> Tensor:
    """`Ops.attention_relative`: each row's seen rows are gathered by their distance, (N, W, H, hd)."""
    n_rows = len(q)
    distances = np.arange(past - 1, -max(future, 1), -1)
    seen = np.arange(n_rows)[:, None] - distances[None, :]
    exists = (seen >= 0) & (seen < n_rows)
    seen = np.clip(seen, 0, n_rows - 1)
    places = past - distances
    known = places < len(relative_keys)
    biases = np.where(known[:, None, None], relative_keys[np.where(known, places, 0)], F32(0))
    scores = np.einsum("nhd,nwhd->nhw", q, k[seen]) + np.einsum("nhd,whd->nhw", q, biases)
    scores = F32(cap) * np.tanh(scores / F32(cap))
    scores[np.broadcast_to(~exists[:, None], scores.shape)] = -np.inf
    return np.einsum("nhw,nwhd->nhd", _softmax(scores), v[seen])


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32; every row has a finite score."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _query_blocks(rows: Tensor, scores_per_row: int) -> list[Tensor]:
    size = max(1, _SCORES_AT_ONCE // scores_per_row)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
