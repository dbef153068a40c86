"""How keys and values are kept: chosen by name, counted right, and what the choice costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cellmd
import model_cases
from cellmd.backends import create
from cellmd.config import ModelConfig
from cellmd.errors import BackendError
from cellmd.runtime.kv_cache import KvCache
from checkpoints import checkpoint_config


@pytest.mark.parametrize(("kind", "element", "scale"), [(None, 2, 0), ("f16", 2, 0), ("f32", 4, 0), ("i8", 1, 4)])
def test_memory_is_counted_as_it_is_taken(kind: str | None, element: int, scale: int) -> None:
    """Three layers with a window of 16 and heads of 8, which take the room of 16; one that sees all, heads of 16."""
    config = ModelConfig.from_dict(checkpoint_config("tiny", {"text_config": {"sliding_window": 16}})).text
    cache = KvCache(create("cpu", 1, kind), config, n_slots=1, context=1000, chunk=8)
    assert cache.bytes_for(1000) == 2 * (3 * 23 + 1000) * (16 * element + scale)


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(BackendError, match="'cpu' keeps keys and values as f16, f32, i8; 'f64' was asked for"):
        create("cpu", 1, "f64")


def divergence(exact: np.ndarray, other: np.ndarray) -> float:
    """Of the distributions after each token, in nats, mean over the tokens."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        shifted = x - x.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    p, q = log_softmax(exact.astype(np.float64)), log_softmax(other.astype(np.float64))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_what_the_choice_costs(tmp_path: Path) -> None:
    """Less than what the backend does anyway costs, rounding the inputs of products to int8."""
    path, prompt = model_cases.build(tmp_path, "tiny", "aggressive"), model_cases.text_prompt(150)

    def logits(backend: str, kind: str | None) -> np.ndarray:
        with cellmd.load(path, backend=backend, threads=2, kv_cache=kind) as model:
            return model.logits(prompt)

    exact = logits("cpu", "f32")
    anyway = divergence(logits("reference", None), exact)
    halves, bytes_ = divergence(exact, logits("cpu", "f16")), divergence(exact, logits("cpu", "i8"))
    assert 0 < halves < bytes_ < anyway
