"""Reading generation_config.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cellmd.errors import ArgumentError, HeaderError
from cellmd.runtime.defaults import GenerationDefaults
from cellmd.runtime.sampler import Sampling


def read(**config: Any) -> GenerationDefaults:
    return GenerationDefaults.from_json(json.dumps(config).encode())


def test_published_defaults() -> None:
    defaults = read(bos_token_id=2, do_sample=True, eos_token_id=[1, 106, 50], temperature=1.0, top_k=64, top_p=0.95)
    assert defaults == GenerationDefaults(Sampling(temperature=1.0, top_k=64, top_p=0.95), (1, 106, 50))


def test_without_sampling_the_likeliest_token_is_taken() -> None:
    assert read(temperature=0.7, top_k=5).sampling == Sampling(temperature=0.0)
    assert read().end_ids == ()
    assert read(eos_token_id=7).end_ids == (7,)


def test_what_is_given_goes_before() -> None:
    defaults = read(do_sample=True, temperature=0.5, top_k=10)
    assert defaults.choose(temperature=None, top_k=3, seed=4) == Sampling(temperature=0.5, top_k=3, seed=4)
    with pytest.raises(ArgumentError, match="top_p"):
        defaults.choose(top_p=2.0)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"eos_token_id": "1"}',
        b'{"eos_token_id": [true]}',
        b'{"do_sample": true, "top_p": 7}',
        b'{"do_sample": true, "top_k": 1e999}',
        b'{"do_sample": true, "temperature": [1]}',
        b'{"do_sample": true, "temperature": "hot"}',
    ],
)
def test_what_cannot_be_used_is_refused(content: bytes) -> None:
    with pytest.raises(HeaderError, match=r"generation_config\.json cannot be used"):
        GenerationDefaults.from_json(content)
