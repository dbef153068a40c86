"""Keys and values of running sequences: how much room they take, and what of them can be gone back to."""

from __future__ import annotations

import os
from typing import Any

from cellmd.backends.ops import Ops
from cellmd.config import LayerConfig, TextConfig
from cellmd.errors import ContextLengthError


class KvCache:
    """Room for n_slots sequences of up to `context` positions, run at most `chunk` rows at a time.

    A layer that sees everything keeps `context` places a slot. A layer with a window keeps a ring: the window of the
    first row of a chunk must still be there when its last row has been written, window + chunk - 1 places.
    `layers` holds, by layer index, the backend's cache, and None for layers that read another's.
    """

    def __init__(self, ops: Ops, config: TextConfig, *, n_slots: int, context: int, chunk: int) -> None:
        self.context = context
        self.chunk = chunk
        self._ops = ops
        self._config = config
        self._written = [0] * n_slots
        self._reserved = 0
        self.layers: list[Any] = [
            ops.new_cache(n_slots, _capacity(layer, context, chunk), layer.n_kv_heads, layer.head_dim)
            if layer.owns_kv
            else None
            for layer in config.layers
        ]

    def reserve(self, n_positions: int) -> None:
        """A sequence is about to grow to so many positions. Raises ContextLengthError where there is no memory."""
        if n_positions <= self._reserved:
            return
        for layer in self.layers:
            if layer is not None:
                self._ops.reserve_(layer, n_positions)
        self._reserved = n_positions

    @property
    def form(self) -> str:
        """The sizes that what a slot holds depends on. Layers that see everything lie the same for any context."""
        return " ".join(
            f"{layer.n_kv_heads}x{layer.head_dim}"
            + (f"@{_capacity(layer, self.context, self.chunk)}" if layer.window else "")
            for layer in self._config.layers
            if layer.owns_kv
        )

    def note_written(self, slot: int, n_positions: int) -> None:
        """A sequence of n_positions lies in the slot now: memory for as many is taken and stays."""
        self._written[slot] = max(self._written[slot], n_positions)

    def can_go_back(self, n_written: int, n_kept: int) -> bool:
        """Whether a sequence of n_written positions can go on from its first n_kept: no ring has lost what they see."""
        for layer in self._config.layers:
            first_seen = max(0, n_kept - layer.window + 1) if layer.window else 0
            first_held = n_written - _capacity(layer, self.context, self.chunk)
            if layer.owns_kv and first_seen < n_kept and first_seen < first_held:
                return False
        return True

    def check_room(self, n_prompt: int, n_answer: int, slot: int = 0) -> None:
        """Raise ContextLengthError if prompt and answer do not fit the context or the memory that is free now, beside
        what the slot has taken already."""
        total = n_prompt + n_answer
        if total > self.context:
            raise ContextLengthError(
                f"a prompt of {n_prompt} tokens and an answer of up to {n_answer} need {total} positions, the context "
                f"has {self.context}; shorten the prompt, ask for fewer tokens, or load with a larger context"
            )
        needed = self.bytes_for(total) - self.bytes_for(self._written[slot])
        free = self._ops.free_bytes()
        if free is None:
            free = free_memory_bytes()
        if free is not None and needed > free:
            raise ContextLengthError(
                f"the keys and values of {total} positions take {needed >> 20} MiB, {free >> 20} MiB of memory are "
                "free; shorten the prompt or ask for fewer tokens"
            )

    def bytes_for(self, n_positions: int) -> int:
        """Memory for the keys and values of one sequence of n_positions."""
        return sum(
            min(n_positions, _capacity(layer, n_positions, self.chunk))
            * self._ops.position_bytes(layer.n_kv_heads, layer.head_dim)
            for layer in self._config.layers
            if layer.owns_kv
        )


def free_memory_bytes() -> int | None:
    """Memory that new pages can be taken from, None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _capacity(layer: LayerConfig, context: int, chunk: int) -> int:
    return min(context, layer.window + chunk - 1) if layer.window else context
