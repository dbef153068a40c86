"""Stop strings, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.errors import ArgumentError
from cellmd.runtime.stop import StopStrings

letters = st.text("ab\n", max_size=12)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    begins = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(begins)], True) if begins else (text, False)


@settings(deadline=None)
@given(st.lists(letters, max_size=8), stop_lists)
def test_pieces_give_what_the_whole_gives(pieces: list[str], stops: list[str]) -> None:
    watch = StopStrings(stops)
    passed = ""
    for piece in pieces:
        passed += watch.push(piece)
        assert naive("".join(pieces), stops)[0].startswith(passed)  # nothing that would have to be taken back
    passed += watch.finish()
    assert (passed, watch.found) == naive("".join(pieces), stops)


def test_only_a_possible_beginning_is_held_back() -> None:
    watch = StopStrings(["END"])
    assert [watch.push(piece) for piece in ("hello ", "E", "N", "x", " EN", "D more")] == [
        "hello ",
        "",
        "",
        "ENx",
        " ",
        "",
    ]
    assert watch.found
    assert watch.push("more") == ""
    assert watch.finish() == ""


def test_one_string_is_a_list_of_one() -> None:
    watch = StopStrings("ab")
    assert watch.push("xaby") == "x"


@pytest.mark.parametrize("stops", [[""], [1], ["a", ""]])
def test_empty_stop_strings_are_refused(stops: list[str]) -> None:
    with pytest.raises(ArgumentError, match="non-empty"):
        StopStrings(stops)
