"""What need not be computed again: keys and values of prompts that begin alike, soft tokens of media seen before."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from cellmd.backends.ops import Tensor
from cellmd.processors.features import AudioFeatures, MediaSpan, Prompt
from cellmd.runtime.kv_cache import KvCache

LEAST_KEPT = 16
"""A common beginning shorter than this is not worth what else the slot holds."""

_ENCODED_BYTES = 128 << 20


def identity(prompt: Prompt) -> tuple[np.ndarray, list[bytes]]:
    """int64 (N,): keys that are equal where, and only where, two prompts have the same tokens and the same media; and a
    digest of each medium's content.

    A token stands for itself. The places of a medium hold a number below zero from its content's SHA-256 and their
    number within the medium.
    """
    keys = np.asarray(prompt.token_ids, dtype=np.int64)
    digests = [_digest(span) for span in prompt.media]
    for span, digest in zip(prompt.media, digests, strict=True):
        n = span.features.n_soft_tokens
        base = int.from_bytes(digest[:7], "little")
        keys[span.start : span.start + n] = -1 - base - np.arange(n)
    return keys, digests


def common(held: np.ndarray, keys: np.ndarray) -> int:
    """How many first keys are the same: of a prompt's keys all but the last at most, which has to be run for its
    logits."""
    n = min(len(held), len(keys) - 1)
    differs = np.flatnonzero(held[:n] != keys[:n])
    return int(differs[0]) if len(differs) else n


class Slot:
    """A place of the cache. keys: of what it holds that can be gone on from. unsaved: nobody has kept that yet."""

    _uses = itertools.count(1)

    def __init__(self, index: int) -> None:
        self.index = index
        self.keys = np.empty(0, np.int64)
        self.last_used = 0
        self.unsaved = False
        self._written = 0

    def begin(self, n_kept: int) -> None:
        """A sequence goes on from the first n_kept positions."""
        if n_kept == 0:
            self._written = 0
        self.keys = self.keys[:n_kept]

    def written(self, n_done: int) -> int:
        """Positions that may ever have been written since the slot was begun anew, n_done of them by the sequence in it
        now, and the next by a step that was begun ahead."""
        return max(self._written, n_done + 1)

    def copied(self, n_written: int) -> None:
        """The slot now holds what another does, in which so many positions had ever been written."""
        self._written = n_written

    def end(self, keys: np.ndarray) -> None:
        """The slot is free again and holds the positions of these keys."""
        self.keys = keys
        self.unsaved = len(keys) > 0
        self._written = self.written(len(keys))
        self.last_used = next(Slot._uses)

    def reusable(self, keys: np.ndarray, cache: KvCache) -> int:
        """How many first positions of a prompt are here and can be gone on from. Further positions than `keys` may once
        have been written, and rings have lost what those replaced."""
        n = common(self.keys, keys)
        return n if n >= LEAST_KEPT and cache.can_go_back(self.written(len(self.keys)), n) else 0


def choose_slot(idle: Sequence[Slot], keys: np.ndarray, cache: KvCache) -> tuple[Slot, int]:
    """The slot that saves most, of equals the one that was used longest ago; and how many positions it saves."""
    kept = {slot.index: slot.reusable(keys, cache) for slot in idle}
    best = max(idle, key=lambda slot: (kept[slot.index], -slot.last_used))
    return best, kept[best.index]


class EncodedMedia:
    """Soft tokens by the digest of what they were made from; the least lately used go first."""

    def __init__(self, max_bytes: int = _ENCODED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._values: OrderedDict[bytes, tuple[Tensor, int]] = OrderedDict()

    def get(self, digest: bytes) -> Tensor | None:
        if digest not in self._values:
            return None
        self._values.move_to_end(digest)
        return self._values[digest][0]

    def put(self, digest: bytes, values: Tensor, n_bytes: int) -> None:
        if digest in self._values:
            return
        self._values[digest] = values, n_bytes
        self._n_bytes += n_bytes
        while self._n_bytes > self._max_bytes:
            _, (_, freed) = self._values.popitem(last=False)
            self._n_bytes -= freed


def _digest(span: MediaSpan) -> bytes:
    features = span.features
    if isinstance(features, AudioFeatures):
        head, values = "audio", features.log_mel
    else:
        head, values = f"image {features.grid_height} {features.grid_width}", features.patches
    digest = hashlib.sha256(f"{head} {values.shape} {values.dtype}\n".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.digest()
