"""How far one distribution over tokens is from another, from logits, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

ROWS = 2
"""Rows of logits worked on at once: with a vocabulary of 262,144 a copy takes 2 MB, and a few of those fit a cache."""

_SHARE = 32
"""Rows that a thread takes at a time, all in the same two arrays: to make such arrays costs more than to fill them."""


def log_softmax(logits: np.ndarray, out: np.ndarray | None = None, spare: np.ndarray | None = None) -> np.ndarray:
    """float32 (N, V), in `out`, which may be the logits themselves. spare: an array of that shape to work in."""
    shifted: np.ndarray = np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    shifted -= np.log(np.exp(shifted, out=spare).sum(axis=1, keepdims=True))
    return shifted


def log_softmax_(logits: np.ndarray, pool: Executor) -> np.ndarray:
    """float32 (N, V), in place."""

    def some(rows: slice, _: np.ndarray, spare: np.ndarray) -> None:
        log_softmax(logits[rows], logits[rows], spare)

    by_rows(some, logits.shape, pool)
    return logits


def divergence(
    log_p: np.ndarray, log_q: np.ndarray, out: np.ndarray | None = None, spare: np.ndarray | None = None
) -> np.ndarray:
    """KL(p || q) = sum p (log p - log q) in nats by row: (N,), from what `log_softmax` gives (N, V).

    out, spare: arrays (N, V) to work in; `out` may be log_q.

    With u = 2^-24 and L the largest -log of either, a divergence d is within u (6 L + 256) (1 + d + sqrt(2 d)) of that
    of the logits: L counts roundings of logits and logarithms, 256 those of exp, log (5 and 8 u) and sums, which NumPy
    takes in pairs (27 u for 262,144 terms), and d + sqrt(2 d) is at least the mean of |log p - log q|. For L = 30 and
    d = 0.1 that is 4e-5 at worst.
    """
    terms: np.ndarray = np.subtract(log_p, log_q, out=out)
    terms *= np.exp(log_p, out=spare)
    # Rounding can leave the divergence of equal distributions a little below zero.
    found: np.ndarray = np.maximum(terms.sum(axis=1), 0)
    return found


def by_rows(work: Callable[[slice, np.ndarray, np.ndarray], None], shape: tuple[int, ...], pool: Executor) -> None:
    """Call `work` with ROWS rows after ROWS rows of an array (N, V), and two float32 arrays of their shape to work in.
    Rows are shared out over the pool: NumPy's arithmetic holds no lock."""
    n_rows, width = shape

    def share(start: int) -> None:
        spare = np.empty((2, ROWS, width), np.float32)
        for first in range(start, min(start + _SHARE, n_rows), ROWS):
            n = min(ROWS, n_rows - first)
            work(slice(first, first + n), spare[0, :n], spare[1, :n])

    list(pool.map(share, range(0, n_rows, _SHARE)))
