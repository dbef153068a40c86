"""Damaged and hostile tables: an error of the container at the door, or a tokenizer that works, if wrongly."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.errors import (
    ContainerError,
    CorruptError,
    HeaderError,
    LayoutError,
    NotCellmdError,
    TruncatedError,
)
from cellmd.vocabulary import Vocabulary, compile_vocabulary
from cellmd.vocabulary.layout import HEADER_BYTES, Counts

TEXT = "<bos>abab é\n the \ue000 <|a|>  "


@pytest.fixture(scope="session")
def table(build: Callable[..., bytes]) -> bytes:
    pieces = ["a", "b", "ab", "abab", "aa", "▁", "▁a", "é", "é\n", "\n"]
    merges = [("ab", "ab"), ("a", "b"), ("▁", "a"), ("é", "\n"), ("a", "a")]
    return compile_vocabulary(build(pieces, merges, [{"id": 267, "content": "<|a|>"}]))


def section(table: bytes, name: str) -> slice:
    return Counts.unpack(table[:HEADER_BYTES])[2].sections()[name]


def changed(table: bytes, name: str, change: Callable[[np.ndarray], None], dtype: str) -> bytes:
    """The table with one section changed in place by `change`."""
    damaged = bytearray(table)
    change(np.frombuffer(memoryview(damaged)[section(table, name)], dtype=dtype))
    return bytes(damaged)


def use(damaged: bytes) -> None:
    """Opens and uses a table: only an error of the container may come of it."""
    try:
        vocabulary = Vocabulary.open(damaged)
        ids = vocabulary.encode(TEXT, add_special_tokens=True)
        assert all(0 <= i < len(vocabulary) for i in ids)
        vocabulary.decode(ids)
        vocabulary.decode(range(len(vocabulary)))
    except ContainerError:
        return


def test_cut_short_at_any_byte(table: bytes) -> None:
    for length in [*range(200), *range(200, len(table), 37), len(table) - 1]:
        with pytest.raises(ContainerError, match="vocabulary table"):
            Vocabulary.open(table[:length])


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_changed_bytes(table: bytes, data: st.DataObject) -> None:
    damaged = bytearray(table)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))
    use(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(field=st.integers(0, 8), value=st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 255, 2**20, 2**31])))
def test_any_count_in_the_header(table: bytes, field: int, value: int) -> None:
    damaged = bytearray(table)
    struct.pack_into("<I", damaged, 8 + 4 * field, value)
    use(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_changed_integers(table: bytes, data: st.DataObject) -> None:
    name, dtype = data.draw(
        st.sampled_from([("offsets", "<u4"), ("slots", "<u4"), ("merge_keys", "<u8"), ("merge_codes", "<u8")])
    )

    def change(values: np.ndarray) -> None:
        place = data.draw(st.integers(0, len(values) - 1))
        values[place] = data.draw(st.one_of(st.integers(0, 2 ** (8 * values.itemsize) - 1), st.integers(0, 600)))

    use(changed(table, name, change, dtype))


def fill(value: int) -> Callable[[np.ndarray], None]:
    return lambda values: values.fill(value)


def put(place: int, value: int) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(place, value)


@pytest.mark.parametrize(
    ("name", "change", "dtype", "error"),
    [
        ("offsets", put(0, 1), "<u4", LayoutError),
        ("offsets", put(5, 2**31), "<u4", LayoutError),
        ("offsets", fill(0), "<u4", LayoutError),
        ("slots", fill(0), "<u4", CorruptError),
        ("slots", fill(1), "<u4", CorruptError),
        ("slots", fill(0xFFFFFFFF), "<u4", CorruptError),
        ("merge_keys", fill(0), "<u8", CorruptError),
        ("merge_keys", put(-1, 2**64 - 1), "<u8", CorruptError),
        ("merge_codes", put(0, 2**64 - 1), "<u8", CorruptError),
        ("strings", put(0, 0xFF), "u1", CorruptError),
        ("strings", put(-1, 0xC3), "u1", CorruptError),
        ("pipeline", put(0, ord("x")), "u1", HeaderError),
        ("pipeline", fill(ord("[")), "u1", HeaderError),
    ],
)
def test_each_damage_has_its_error(
    table: bytes, name: str, change: Callable[[np.ndarray], None], dtype: str, error: type[ContainerError]
) -> None:
    with pytest.raises(error, match="vocabulary table"):
        Vocabulary.open(changed(table, name, change, dtype))


def test_a_missing_byte_token_and_a_moved_added_token(table: bytes) -> None:
    for name in (b"<0x7F>", b"<|a|>"):
        place = table.index(name, section(table, "strings").start)
        with pytest.raises(CorruptError, match="vocabulary table"):
            Vocabulary.open(table[:place] + name[::-1] + table[place + len(name) :])


def test_a_token_that_begins_inside_a_character(table: bytes) -> None:
    before = table[section(table, "strings")].index("é".encode()) + 1
    token = int(np.searchsorted(np.frombuffer(table[section(table, "offsets")], "<u4"), before))
    vocabulary = Vocabulary.open(changed(table, "offsets", put(token, before), "<u4"))
    with pytest.raises(CorruptError, match=f"token {token} is not UTF-8"):
        vocabulary.decode([token])


def test_something_else(table: bytes) -> None:
    with pytest.raises(NotCellmdError, match="begins with"):
        Vocabulary.open(b"\x89PNG" + bytes(200))
    with pytest.raises(NotCellmdError, match="version 9"):
        Vocabulary.open(table[:8] + struct.pack("<I", 9) + table[12:])
    with pytest.raises(TruncatedError):
        Vocabulary.open(b"")
    with pytest.raises(LayoutError, match="after its end"):
        Vocabulary.open(table + b"\0")


def test_read_from_a_mapped_file(table: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"before" + table)
    with path.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert Vocabulary.open(mapped[6:]).encode(TEXT) == Vocabulary.open(table).encode(TEXT)
