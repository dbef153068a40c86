"""A model's own way of being sampled: its generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cellmd.errors import ArgumentError, HeaderError
from cellmd.runtime.sampler import Sampling


@dataclass(frozen=True)
class GenerationDefaults:
    """sampling: for what the caller leaves open. end_ids: tokens that end an answer; empty if the file says nothing."""

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    end_ids: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, content: bytes) -> GenerationDefaults:
        """Read a generation_config.json; keys that are missing change nothing. Raises HeaderError."""
        try:
            config = json.loads(content)
            if not isinstance(config, Mapping):
                raise ArgumentError(f"not a JSON object but {type(config).__name__}")
            return cls(_sampling(config), _end_ids(config.get("eos_token_id")))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise HeaderError(f"the file's generation_config.json cannot be used: {error}") from error

    def choose(self, **given: Any) -> Sampling:
        """The defaults with what the caller gave (None: left open). Raises ArgumentError for a value out of range."""
        return replace(self.sampling, **{name: value for name, value in given.items() if value is not None})


def _sampling(config: Mapping[str, Any]) -> Sampling:
    if not config.get("do_sample", False):
        penalty = config.get("repetition_penalty")
        return Sampling(temperature=0.0, repetition_penalty=1.0 if penalty is None else float(penalty))
    names = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
    return Sampling(**{name: read(config[name]) for name, read in names.items() if config.get(name) is not None})


def _end_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
        raise ArgumentError(f"eos_token_id must be a token id or a list of them, found {value!r}")
    return tuple(ids)
