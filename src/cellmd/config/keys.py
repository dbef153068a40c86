"""Reading the keys of a configuration: each one of its kind and within bounds, or an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cellmd.errors import ArgumentError, UnsupportedModelError

MAX_LAYERS = 1024
MAX_SIZE = 2**31 - 1


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ArgumentError(f"config key {key!r} must be an object, found {shown(value)}")
    return value or {}


def positive(config: Mapping[str, Any], key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
    return integer(config, key, default, 1, most)


def count(config: Mapping[str, Any], key: str, most: int = MAX_SIZE) -> int:
    return integer(config, key, 0, 0, most)


def integer(config: Mapping[str, Any], key: str, default: int | None, least: int, most: int) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ArgumentError(f"config key {key!r} must be an integer from {least} to {most}, found {shown(value)}")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond any float
        pass
    raise ArgumentError(f"config key {key!r} must be a finite number, found {shown(value)}")


def listed(config: Mapping[str, Any], key: str, default: Sequence[Any]) -> list[Any]:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"config key {key!r} must be a list, found {shown(value)}")
    return list(value)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(condition: object, what: str) -> None:
    if condition:
        raise UnsupportedModelError(f"{what} is not supported")
