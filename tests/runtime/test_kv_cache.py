"""Room in the cache: estimates, refusals, and what can be gone back to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.backends import create
from cellmd.config import ModelConfig, TextConfig
from cellmd.errors import BackendError, ContextLengthError
from cellmd.runtime import kv_cache
from cellmd.runtime.kv_cache import KvCache
from checkpoints import checkpoint_config


def text_config(window: int = 16) -> TextConfig:
    overrides = {"text_config": {"sliding_window": window}}
    return ModelConfig.from_dict(checkpoint_config("tiny", overrides)).text


def test_only_writing_layers_have_a_cache() -> None:
    config = text_config()
    cache = KvCache(create("reference"), config, n_slots=2, context=100, chunk=8)
    assert [layer is not None for layer in cache.layers] == [layer.owns_kv for layer in config.layers]
    assert [layer.keys.shape for layer in cache.layers if layer is not None] == [
        (2, 23, 1, 8),
        (2, 23, 1, 8),
        (2, 100, 1, 16),
        (2, 23, 1, 8),
    ]


def test_estimate_is_what_the_positions_fill() -> None:
    cache = KvCache(create("reference"), text_config(), n_slots=1, context=1000, chunk=8)
    # three sliding layers of width 8, capped at 16 + 8 - 1 places, one full layer of width 16; keys and values
    assert cache.bytes_for(10) == 2 * 4 * (3 * 10 * 8 + 10 * 16)
    assert cache.bytes_for(1000) == 2 * 4 * (3 * 23 * 8 + 1000 * 16)


@pytest.mark.parametrize("kind", ["i8", "f64"])
def test_ways_to_keep_them_that_a_backend_lacks(kind: str) -> None:
    with pytest.raises(BackendError, match=f"'reference' keeps keys and values in one way only; '{kind}'"):
        create("reference", 1, kind)


def test_what_does_not_fit_the_context_is_refused_with_numbers() -> None:
    cache = KvCache(create("reference"), text_config(), n_slots=1, context=50, chunk=8)
    cache.check_room(40, 10)
    with pytest.raises(ContextLengthError, match=r"prompt of 41 tokens and an answer of up to 10 need 51 .* has 50"):
        cache.check_room(41, 10)


def test_what_does_not_fit_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KvCache(create("reference"), text_config(), n_slots=1, context=50_000, chunk=8)
    monkeypatch.setattr(kv_cache, "free_memory_bytes", lambda: 1 << 20)
    with pytest.raises(ContextLengthError, match="40000 positions take 4 MiB, 1 MiB of memory are free"):
        cache.check_room(39_999, 1)
    cache.note_written(0, 35_000)  # most of it is taken and will be written again
    cache.check_room(39_999, 1)
    cache = KvCache(create("reference"), text_config(), n_slots=1, context=50_000, chunk=8)
    monkeypatch.setattr(kv_cache, "free_memory_bytes", lambda: None)
    cache.check_room(39_999, 1)


def test_free_memory_is_known_here() -> None:
    free = kv_cache.free_memory_bytes()
    assert free is None or free > 1 << 20


@settings(deadline=None)
@given(
    window=st.integers(1, 9),
    chunk=st.integers(1, 9),
    n_written=st.integers(1, 60),
    kept=st.integers(0, 60),
    context=st.integers(60, 80),
)
def test_going_back_keeps_what_is_seen(window: int, chunk: int, n_written: int, kept: int, context: int) -> None:
    """Against a ring that is written down place by place."""
    kept = min(kept, n_written)
    capacity = min(context, window + chunk - 1)
    ring = {position % capacity: position for position in range(n_written)}
    seen = range(max(0, kept - window + 1), kept)  # what the next row, at position `kept`, sees before itself
    intact = all(ring[position % capacity] == position for position in seen)
    cache = KvCache(create("reference"), text_config(window), n_slots=1, context=context, chunk=chunk)
    assert cache.can_go_back(n_written, kept) == intact
