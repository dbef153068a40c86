"""The fuzz target on the committed files and on changed copies of true ones: bytes flipped, cut, spliced, repeated; and
values of the header replaced by others of every kind, in a file that is otherwise whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.files import join_v1, join_v2, split_v2, v1_document, v1_file, write_v2
from container.make_attacks import FOLDER
from fuzz.container_fuzz import target


@pytest.fixture(scope="module")
def true_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = write_v2(tmp_path_factory.mktemp("fuzz") / "true.cellmd")
    return [path.read_bytes(), v1_file()]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.cellmd")), ids=lambda path: path.stem)
def test_committed_files(path: Path) -> None:
    assert target(path.read_bytes()) is not None


def test_true_files(true_files: list[bytes]) -> None:
    assert [target(content) for content in true_files] == [None, None]


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=400)
@given(which=st.integers(0, 1), in_header=st.booleans(), edits=edits)
def test_changed_bytes(
    true_files: list[bytes], which: int, in_header: bool, edits: list[tuple[str, float, bytes]]
) -> None:
    content = bytearray(true_files[which])
    for kind, place, payload in edits:
        reach = min(len(content), 10 + struct.unpack("<I", true_files[which][6:10])[0]) if in_header else len(content)
        at = int(place * max(0, reach - 1))
        if kind == "flip":
            content[at : at + 1] = bytes(byte ^ payload[0] for byte in content[at : at + 1])
        elif kind == "set":
            content[at : at + len(payload)] = payload
        elif kind == "cut":
            del content[at : at + payload[0] * 8]
        elif kind == "insert":
            content[at:at] = payload
        else:
            content[at:at] = content[at : at + payload[0] * 8]
    target(bytes(content))


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a JSON document but the document itself."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return []
    return [place for key, inner in items for place in [(*path, key), *paths_of(inner, (*path, key))]]


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 600),
    st.sampled_from([2**31, 2**53, 2**63, 2**64, -(2**63), 4096, 4160, 64]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "i4", "i8", "f16", "bf16", "u8", "row", "tile16", "none", "zlib", "0" * 64, "\ud800", "\x00"]),
    st.text(max_size=4),
    st.lists(st.integers(0, 40), max_size=9),
    st.dictionaries(st.sampled_from(["offset", "nbytes", "sha256", "size"]), st.integers(0, 5000), max_size=4),
)


changes_of_values = st.lists(st.tuples(st.integers(0, 9999), odd_values), min_size=1, max_size=3)


@settings(deadline=None, max_examples=400)
@given(which=st.integers(0, 1), changes=changes_of_values, remove=st.booleans())
def test_changed_headers(true_files, which, changes, remove) -> None:
    if which == 0:
        document, blobs = split_v2(true_files[0])
    else:
        document, v1_blobs = v1_document()
        content = join_v1(document, v1_blobs)  # fills in the document's offsets
    for choice, value in changes:
        places = paths_of(document)
        *parents, last = places[choice % len(places)]
        where = document
        for key in parents:
            where = where[key]
        if remove:
            del where[last]
        else:
            where[last] = value
    if which == 0:
        target(join_v2(document, blobs, start=len(true_files[0]) - len(blobs)))
    else:
        header = json.dumps(document).encode()
        target(b"CELLM\x01" + struct.pack("<I", len(header)) + header.ljust(2048 - 10, b"\0") + content[2048:])
