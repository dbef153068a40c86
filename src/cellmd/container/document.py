"""JSON from strangers: parsed within bounds, and read with strict types.

Every failure is a HeaderError that says where in the header it was found and shows, shortened, what was found.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection
from typing import Any

from cellmd.container.layout import (
    MAX_DIMENSION,
    MAX_HEADER_DEPTH,
    MAX_HEADER_VALUES,
    MAX_NAME_LENGTH,
    MAX_RANK,
)
from cellmd.errors import HeaderError

Object = dict[str, Any]

MAX_COUNT = 2**53
"""Offsets and sizes: every JSON reader has integers up to here."""

_NAME = re.compile(r"[!-~]+")


def shown(value: object) -> str:
    """value for a message: short, and printable on any terminal."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode("ascii")


def parse(raw: bytes | memoryview) -> Object:
    """The header's JSON text -> its top-level object.

    Refuses other than UTF-8, repeated keys, NaN and Infinity, more than MAX_HEADER_VALUES values.
    """
    raw = bytes(raw)
    n_values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if n_values > MAX_HEADER_VALUES:
        raise HeaderError(f"the header holds about {n_values} values, more than the {MAX_HEADER_VALUES} allowed")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise HeaderError(f"the header is not UTF-8 text (byte {error.start}); the file is damaged") from None
    except RecursionError:
        raise HeaderError("the header's JSON is nested too deep; no converter wrote this") from None
    except json.JSONDecodeError as error:
        raise HeaderError(f"the header is not valid JSON ({error}); the file is damaged") from None
    except ValueError:
        raise HeaderError("the header holds an integer of thousands of digits; no converter wrote this") from None
    return as_object(document, "the header")


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise HeaderError(f"the header repeats the key {shown(repeated)} within an object")
    return result


def _no_constant(text: str) -> None:
    raise HeaderError(f"the header holds {text}, which is not JSON")


def as_object(value: object, where: str) -> Object:
    if type(value) is not dict:
        raise HeaderError(f"{where} must be an object, found {shown(value)}")
    return value


def with_keys(value: object, where: str, required: Collection[str], optional: Collection[str] = ()) -> Object:
    """value as an object that has all `required` keys and, of others, only `optional` ones."""
    found = as_object(value, where)
    if len(found) == len(required) and all(key in found for key in required):
        return found
    for key in required:
        if key not in found:
            raise HeaderError(f"{where} lacks the key {key!r}")
    unknown = next((key for key in found if key not in required and key not in optional), None)
    if unknown is not None:
        raise HeaderError(f"{where} has the unknown key {shown(unknown)}")
    return found


def free_object(value: object, where: str) -> Object:
    """value as an object whose content is nobody's business here, nested at most MAX_HEADER_DEPTH deep."""
    level: list[Any] = [as_object(value, where)]
    for _ in range(MAX_HEADER_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
        if not level:
            return value  # type: ignore[return-value]
    raise HeaderError(f"{where} is nested more than {MAX_HEADER_DEPTH} deep")


def as_list(value: object, where: str, limit: int) -> list[Any]:
    if type(value) is not list:
        raise HeaderError(f"{where} must be a list, found {shown(value)}")
    if len(value) > limit:
        raise HeaderError(f"{where} lists {len(value)} items, more than the {limit} allowed")
    return value


def as_count(value: object, where: str, limit: int = MAX_COUNT) -> int:
    """value as an integer 0 .. limit; true, 1.0 and "1" are none."""
    if type(value) is not int or not 0 <= value <= limit:
        raise HeaderError(f"{where} must be an integer from 0 to {limit}, found {shown(value)}")
    return value


def as_text(value: object, where: str) -> str:
    if type(value) is not str:
        raise HeaderError(f"{where} must be a string, found {shown(value)}")
    return value


def as_name(value: object, where: str) -> str:
    """value as a name: 1 .. MAX_NAME_LENGTH visible ASCII characters."""
    name = as_text(value, where)
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise HeaderError(f"{where} must be 1 to {MAX_NAME_LENGTH} visible ASCII characters, found {shown(name)}")
    return name


def as_shape(value: object, where: str) -> tuple[int, ...]:
    """value as a list of at most MAX_RANK dimensions of 1 .. MAX_DIMENSION; [] is a single number."""
    shape = tuple(as_list(value, where, MAX_RANK))
    for size in shape:
        if type(size) is not int or not 1 <= size <= MAX_DIMENSION:
            raise HeaderError(f"{where} has the dimension {shown(size)}, no integer from 1 to {MAX_DIMENSION}")
    return shape
