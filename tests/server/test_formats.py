"""Formats of texts in schemas, against Python's own readers of the same."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import random
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmd.server.formats import FORMATS, without_other_formats


def fits(name: str, text: str) -> bool:
    return re.fullmatch(FORMATS[name], text) is not None


def readable(read: Callable[[str], Any], text: str) -> bool:
    with contextlib.suppress(ValueError):
        read(text)
        return True
    return False


def test_every_day_of_four_centuries_and_no_other() -> None:
    for year in [*range(1996, 2005), 1, 400, 1900, 2100, 2400, 9999]:
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                assert fits("date", text) == readable(datetime.date.fromisoformat, text), text


@given(st.datetimes(timezones=st.timezones() | st.just(datetime.UTC)))
def test_times_as_they_are_written(moment: datetime.datetime) -> None:
    offset = moment.utcoffset() or datetime.timedelta()
    if offset % datetime.timedelta(minutes=1):
        return  # older zones count seconds, which RFC 3339 does not
    assert fits("date-time", moment.isoformat())
    assert fits("time", moment.timetz().isoformat()) or moment.timetz().utcoffset() is None
    assert not fits("date-time", moment.replace(tzinfo=None).isoformat())


def test_addresses_of_both_kinds() -> None:
    rng = random.Random(0)
    parts = ["0", "1", "ab", "ffff", "12345", "g", "", "1.2.3.4", "1.2.3.256"]
    n_right = 0
    for _ in range(50_000):
        chosen = rng.choices(parts, [8, 8, 8, 8, 1, 1, 2, 2, 1], k=rng.randrange(1, 10))
        text = ":".join(chosen).replace(":", "::", rng.randrange(2))
        right = readable(ipaddress.IPv6Address, text)
        n_right += right
        assert fits("ipv6", text) == right, text
    assert n_right > 1000
    for text in ("0.0.0.0", "255.255.255.255", "1.2.3", "1.2.3.256", "01.2.3.4", "1.2.3.4.5", "a.b.c.d"):
        assert fits("ipv4", text) == readable(ipaddress.IPv4Address, text), text


@given(st.uuids())
def test_identifiers(one: uuid.UUID) -> None:
    assert fits("uuid", str(one))
    assert not fits("uuid", one.hex)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("duration", ["P3D", "P1Y2M3DT4H5M6S", "PT30M", "P2W", "PT5H"], ["P", "PT", "P1S", "3D", "P1W2D", "P1DT"]),
        ("email", ["a@b", "first.last+tag@mail.example.org"], ["a", "@b", "a@", "a b@c", "a@b..c", ".a@b"]),
        ("hostname", ["localhost", "a-b.example.org", "1.example"], ["", "-a", "a-", "a_b", "a..b", "a" * 64]),
        (
            "uri",
            ["https://example.org", "mailto:a@b.example", "http://[::1]:80/a?b=c#d", "urn:isbn:1", "a:b%20c"],
            ["example.org", "//a", "http://a b", "a:b%2", "a:#b#c", "http://[::g]/"],
        ),
        ("time", ["10:20:30Z", "23:59:59.25+05:30"], ["10:20Z", "24:00:00Z", "10:20:30", "10:60:00Z"]),
    ],
)
def test_forms(name: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not fits(name, text)] == []
    assert [text for text in wrong if fits(name, text)] == []


def test_other_formats_are_notes() -> None:
    schema = {
        "properties": {"format": {"type": "string", "format": "password"}, "b": {"format": "date"}},
        "items": [{"format": "path"}, True],
        "const": {"format": "password"},
        "format": ["odd"],
    }
    assert without_other_formats(schema) == {
        "properties": {"format": {"type": "string"}, "b": {"format": "date"}},
        "items": [{}, True],
        "const": {"format": "password"},
    }
