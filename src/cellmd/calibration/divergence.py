"""How far one distribution over tokens is from another, from logits, a few rows at a time."""

from __future__ import annotations

import numpy as np

ROWS = 2
"""Rows of logits worked on at once: with a vocabulary of 262,144 a copy takes 2 MB, and a few of those fit a cache."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (N, V), a new array."""
    shifted: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def log_softmax_(logits: np.ndarray) -> np.ndarray:
    """float32 (N, V), in place."""
    for start in range(0, len(logits), ROWS):
        logits[start : start + ROWS] = log_softmax(logits[start : start + ROWS])
    return logits


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p || q) = sum p (log p - log q) in nats by row: (N,), from log probabilities (N, V)."""
    # Rounding can leave the divergence of equal distributions a little below zero.
    found: np.ndarray = np.maximum(np.einsum("nv,nv->n", np.exp(log_p), log_p - log_q), 0)
    return found
