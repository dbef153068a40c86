"""docs/format.md says what the code does: constants, codings, errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cellmd import errors
from cellmd.container import layout
from cellmd.container.header import COMPRESSIONS, PARTS
from cellmd.quant import Coding, coding_problem, sizes
from cellmd.quant.schemes import FLOATS, GROUP_SIZES, LAYOUTS, QUANTISERS, SCALE_DTYPES
from container.make_attacks import ATTACKS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def table(first_column: str) -> list[list[str]]:
    """The rows of the one table whose heading starts with this column, cells without backticks."""
    (found,) = re.findall(rf"^\| {re.escape(first_column)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split(" | ")] for row in found.splitlines()]


def test_constants_are_all_documented_with_their_values() -> None:
    documented = {name: int(value) for name, value, _ in table("constant")}
    numbers = {name: value for name, value in vars(layout).items() if name.isupper() and type(value) is int}
    del numbers["SHA256_HEX_DIGITS"]  # a property of SHA-256, not of the format
    assert documented == numbers
    assert f"`{layout.MAGIC.decode()}`" in DOCUMENT


def test_the_table_of_codings_is_what_is_accepted() -> None:
    documented = {}
    for dtypes, layouts, groups, scale_dtypes, parts in table("`dtype` | `layout` | `group_size` | `scale_dtype`"):
        for dtype in dtypes.split(", "):
            for lay in layouts.split(", "):
                for group in groups.split(", "):
                    for scale_dtype in scale_dtypes.split(", "):
                        coding = Coding(dtype, lay, int(group), None if scale_dtype == "null" else scale_dtype)
                        documented[coding] = parts.split(", ")
    possible = [
        Coding(dtype, lay, group, scale_dtype)
        for dtype in (*FLOATS, *QUANTISERS)
        for lay in LAYOUTS
        for group in GROUP_SIZES
        for scale_dtype in (None, *SCALE_DTYPES)
    ]
    assert set(documented) == {coding for coding in possible if coding_problem((3, 5), coding) is None}
    for coding, parts in documented.items():
        found = sizes((3, 5), coding)
        assert [part for part in PARTS if getattr(found, part)] == parts


def test_errors_are_the_ones_that_the_attacks_end_in() -> None:
    documented = {getattr(errors, name) for name, _ in table("error")}
    assert documented == {error for error, _ in ATTACKS.values()} - {errors.UnsupportedModelError}


@pytest.mark.parametrize("word", [*COMPRESSIONS, "code × scale", "value + 8", "[N/16][G][16]"])
def test_words_that_must_not_be_lost(word: str) -> None:
    assert word in DOCUMENT
