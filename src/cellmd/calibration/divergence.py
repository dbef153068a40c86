"""How far one distribution over tokens is from another, from logits, a few rows at a time."""

from __future__ import annotations

import numpy as np

ROWS = 32
"""Rows of logits worked on at once: with a vocabulary of 262,144 a copy takes 34 MB."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (N, V), a new array."""
    shifted: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p || q) = sum p (log p - log q) in nats by row: (N,), from log probabilities (N, V)."""
    # Rounding can leave the divergence of equal distributions a little below zero.
    found: np.ndarray = np.maximum(np.einsum("nv,nv->n", np.exp(log_p), log_p - log_q), 0)
    return found
