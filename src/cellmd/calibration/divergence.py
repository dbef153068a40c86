"""How far one distribution over tokens is from another, from logits, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

ROWS = 2
"""Rows of logits worked on at once: with a vocabulary of 262,144 a copy takes 2 MB, and a few of those fit a cache."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (N, V), a new array."""
    shifted: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def log_softmax_(logits: np.ndarray, pool: Executor) -> np.ndarray:
    """float32 (N, V), in place."""

    def one(rows: slice) -> None:
        logits[rows] = log_softmax(logits[rows])

    by_rows(one, len(logits), pool)
    return logits


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p || q) = sum p (log p - log q) in nats by row: (N,), from what `log_softmax` gives (N, V).

    With u = 2^-24 and L the largest -log of either, a divergence d is within u (6 L + 256) (1 + d + sqrt(2 d)) of that
    of the logits: L counts roundings of logits and logarithms, 256 those of exp, log (5 and 8 u) and sums, which NumPy
    takes in pairs (27 u for 262,144 terms), and d + sqrt(2 d) is at least the mean of |log p - log q|. For L = 30 and
    d = 0.1 that is 4e-5 at worst.
    """
    terms = log_p - log_q
    terms *= np.exp(log_p)
    # Rounding can leave the divergence of equal distributions a little below zero.
    found: np.ndarray = np.maximum(terms.sum(axis=1), 0)
    return found


def by_rows(work: Callable[[slice], None], n_rows: int, pool: Executor) -> None:
    """Call `work` with ROWS rows after ROWS rows, shared out over the pool: NumPy's arithmetic holds no lock."""
    list(pool.map(work, (slice(start, start + ROWS) for start in range(0, n_rows, ROWS))))
