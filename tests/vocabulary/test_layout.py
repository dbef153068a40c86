"""docs/tokenizer.md is normative: its tables and formulas, taken word for word, read what the compiler writes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cellmd.vocabulary import compile_vocabulary
from cellmd.vocabulary import layout as code

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "tokenizer.md").read_text()
PIECES = ["a", "b", "ab", "abb", "é", "éa", "aé", "bb", "𝔘", "a𝔘"]
MERGES = [("b", "b"), ("é", "a"), ("a", "b"), ("a", "bb"), ("ab", "b"), ("a", "é"), ("a", "𝔘")]


@pytest.fixture(scope="session")
def table(build: Callable[..., bytes]) -> bytes:
    return compile_vocabulary(build(PIECES, MERGES))


def header(table: bytes) -> dict[str, int]:
    """The header's integers, read by the document's table."""
    rows = re.findall(r"^\| (\d+) \| u32 \| `(\w+)` \|", DOCUMENT, flags=re.MULTILINE)
    return {name: int.from_bytes(table[int(at) : int(at) + 4], "little") for at, name in rows}


def sections(table: bytes) -> dict[str, bytes]:
    """The sections, read by the document's table: each at the next multiple of 64."""
    facts = header(table)
    found, position = {}, 44
    for name, size in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", DOCUMENT, flags=re.MULTILINE):
        formula = re.sub(r"(\d) ([(`])", r"\1 * \2", size).replace("`", "").replace("/", "//")
        length = eval(formula, {}, dict(facts))  # the document's own arithmetic
        start = -(-position // 64) * 64
        found[name], position = table[start : start + length], start + length
    assert position == len(table)
    return found


def test_names_and_limits(table: bytes) -> None:
    assert list(header(table)) == ["version", *(field.name for field in fields(code.Counts))]
    assert list(sections(table)) == list(code.Counts.unpack(table[: code.HEADER_BYTES])[2].sections())
    assert table.startswith(b"CELLMVOC")
    assert f"A header of {code.HEADER_BYTES} bytes" in DOCUMENT
    assert f"| `version` | {code.VERSION} |" in DOCUMENT
    for limit in (code.MAX_TOKENS, code.MAX_PIPELINE_BYTES, code.MAX_TOKEN_BYTES):
        assert f"{limit:,}" in DOCUMENT
    assert f"longer than\n{code.MAX_SLOT_RUN}." in DOCUMENT


def test_strings_and_hash_table(table: bytes) -> None:
    part = sections(table)
    offsets, slots = np.frombuffer(part["offsets"], "<u4"), np.frombuffer(part["slots"], "<u4")
    tokens = [part["strings"][a:b] for a, b in pairwise(offsets.tolist())]
    assert [token.decode() for token in tokens[257:]] == PIECES
    for i, token in enumerate(tokens):
        digest = zlib.crc32(token)
        place = digest % len(slots)
        while slots[place] and slots[place] != (digest >> 20) * 2**20 + i + 1:
            place = (place + 1) % len(slots)
        assert slots[place]


def test_borders(table: bytes) -> None:
    borders, bits = sections(table)["borders"], header(table)["border_bits"]
    expected = set()
    for x, y in {(a, b) for left, right in MERGES for a, b in pairwise(left + right)}:
        mixed = (ord(x) * 0x9E3779B1) % 2**32 ^ (ord(y) * 0x85EBCA77) % 2**32
        expected.add(mixed >> (32 - bits.bit_length() + 1))
    assert {b for b in range(bits) if borders[b // 8] >> b % 8 & 1} == expected


def test_merges(table: bytes) -> None:
    part, facts = sections(table), header(table)
    ids = {piece: 257 + i for i, piece in enumerate(PIECES)}
    keys, codes = (np.frombuffer(part[name], "<u8").tolist() for name in ("merge_keys", "merge_codes"))
    assert keys == sorted(keys)
    listed = sorted((c // 2**20, divmod(key, 2**32), c % 2**20) for key, c in zip(keys, codes, strict=True))
    # The rule puts (ab, b) before (a, bb) and all merges by the joined token's id, so what must be listed is the head.
    assert facts["derived"] == 1
    assert listed == [
        (rank, (ids[left], ids[right]), ids[left + right]) for rank, (left, right) in enumerate(MERGES[:4])
    ]
