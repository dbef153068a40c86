"""The notation of tool calls, written as the chat template writes it and read back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cellmd.runtime.tool_call import read_tool_call

QUOTE = '<|"|>'
texts = st.text(max_size=8).filter(lambda text: QUOTE not in text)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)
numbers = st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6, allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any, marked_keys: bool) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, dict):
        mark = QUOTE if marked_keys else ""
        return "{" + ",".join(f"{mark}{k}{mark}:{written(v, marked_keys)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, marked_keys) for item in value) + "]"
    return str(value)


@given(keys, st.dictionaries(keys, values, max_size=4), st.booleans())
def test_what_the_template_writes_is_read(name: str, arguments: dict[str, Any], marked_keys: bool) -> None:
    call = read_tool_call(f"call:{name}{written(arguments, marked_keys)}")
    assert call == {"type": "function", "function": {"name": name, "arguments": arguments}}


@given(st.text(alphabet='{}[]:,ab1" \n', max_size=30) | st.text(max_size=30))
def test_nonsense_is_handed_on_as_it_is(text: str) -> None:
    function = read_tool_call(text)["function"]
    assert isinstance(function["name"], str)
    assert isinstance(function["arguments"], dict) or function["arguments"] == text


def test_a_call_cut_short_keeps_its_name() -> None:
    text = f"call:weather{{city:{QUOTE}Par"
    assert read_tool_call(text)["function"] == {"name": "weather", "arguments": text}


def test_endless_nesting_is_no_call() -> None:
    text = "call:f{a:" + "[" * 10_000
    assert read_tool_call(text)["function"]["arguments"] == text
