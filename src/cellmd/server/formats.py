"""The formats of texts that a JSON schema may name, as regular expressions for the content of the text.

Sources: RFC 3339 (dates, times, durations), RFC 5321 (mail addresses, without quoted names), RFC 1123 (host names),
RFC 3986 (IP addresses, URIs), RFC 9562 (UUIDs). How long a name is on the whole is not counted. Other formats say
nothing about a text's form, as JSON Schema has it.
"""

from __future__ import annotations

from typing import Any

_MONTH_DAY = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = f"([0-9]{{4}}-{_MONTH_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+-]{_CLOCK})"

_SECONDS = "[0-9]{1,9}S"
_MINUTES = f"[0-9]{{1,9}}M({_SECONDS})?"
_HOURS = f"[0-9]{{1,9}}H({_MINUTES})?"
_DAYS = "[0-9]{1,9}D"
_MONTHS = f"[0-9]{{1,9}}M({_DAYS})?"
_YEARS = f"[0-9]{{1,9}}Y({_MONTHS})?"
_CLOCKED = f"T({_HOURS}|{_MINUTES}|{_SECONDS})"
_DURATION = f"P(({_DAYS}|{_MONTHS}|{_YEARS})({_CLOCKED})?|{_CLOCKED}|[0-9]{{1,9}}W)"

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL})*"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_EMAIL = rf"{_ATOM}(\.{_ATOM})*@{_HOST}"

_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_GROUP = "[0-9A-Fa-f]{1,4}"
_LAST = f"({_GROUP}:{_GROUP}|{_IPV4})"
_IPV6 = "|".join(
    [
        f"({_GROUP}:){{6}}{_LAST}",
        f"::({_GROUP}:){{5}}{_LAST}",
        *(f"(({_GROUP}:){{0,{n}}}{_GROUP})?::({_GROUP}:){{{4 - n}}}{_LAST}" for n in range(5)),
        f"(({_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}",
        f"(({_GROUP}:){{0,6}}{_GROUP})?::",
    ]
)

_HEX = "[0-9A-Fa-f]"
_UUID = f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"
_CHARACTER = f"([A-Za-z0-9._~!$&'()*+,;=:@/-]|%{_HEX}{{2}})"
_PORT = "(:[0-9]{1,5})?"
_AUTHORITY = rf"//({_HOST}|{_IPV4}|\[({_IPV6})\]){_PORT}(/{_CHARACTER}*)?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:({_AUTHORITY}|{_CHARACTER}+)(\?({_CHARACTER}|\?)*)?(#({_CHARACTER}|\?)*)?"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": f"({_IPV6})",
    "uuid": _UUID,
    "uri": _URI,
}

_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_VALUES = ("const", "enum", "default", "examples")


def without_other_formats(schema: Any) -> Any:
    """A JSON schema without the formats that are not among these: they are notes, not conditions."""
    if isinstance(schema, list):
        return [without_other_formats(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "format" and not (isinstance(value, str) and value in FORMATS):
            continue
        if key in _OF_SCHEMAS and isinstance(value, dict):
            kept[key] = {name: without_other_formats(one) for name, one in value.items()}
        else:
            kept[key] = value if key in _OF_VALUES else without_other_formats(value)
    return kept
