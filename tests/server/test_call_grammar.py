"""Schemas of tools as grammars: what the schema allows can be called, in the template's notation, and no more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cellmd
from cellmd.errors import ArgumentError
from cellmd.processors.template import ChatTemplate
from cellmd.server.grammar import Grammars
from processors.folders import TEMPLATE

END = 106


@pytest.fixture(scope="module")
def grammars(model: cellmd.Model) -> Grammars:
    return Grammars(model.processor.tokenizer, 512, END)


TEMPLATES = ChatTemplate(TEMPLATE)


def notation(arguments: Any, name: str = "f") -> str:
    """A call as the chat template writes it."""
    call = {"function": {"name": name, "arguments": arguments}}
    text = TEMPLATES.render([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}])
    return text[text.index("<|tool_call>") : text.index("<tool_call|>") + len("<tool_call|>")]


def takes(model: cellmd.Model, grammars: Grammars, schema: Any, text: str, **options: Any) -> bool:
    """Whether a call of f may be written so, from the first token to the last."""
    function = {"name": "f", "parameters": schema}
    form = grammars.tool_calls([function], **{"several": False, **options})
    for token in model.processor.tokenizer.encode(text):
        if not form.allowed()[token]:
            return False
        form.accept(token)
    return form.may_end()


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


def of(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
TREE = {
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/node"}},
    "required": ["tree"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": STRING, "below": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["name"],
        }
    },
}
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (
        of(STRING),
        [{"a": ""}, {"a": 'x "y" {z}, 1'}, {"a": "a\nb"}],
        [{"a": 1}, {"a": None}, {}, {"b": "x"}, {"a": ["x"]}],
    ),
    (of(INTEGER), [{"a": 0}, {"a": -17}], [{"a": 1.5}, {"a": "1"}, {"a": True}]),
    (of({"type": "number"}), [{"a": 0}, {"a": -1.25}], [{"a": "1"}, {"a": False}]),
    (of({"type": "integer", "minimum": 3, "maximum": 12}), [{"a": 3}, {"a": 12}], [{"a": 2}, {"a": 13}, {"a": 3.5}]),
    (of({"type": "boolean"}), [{"a": True}, {"a": False}], [{"a": 1}, {"a": "true"}, {"a": None}]),
    (of({"type": "null"}), [{"a": None}], [{"a": 0}, {"a": ""}]),
    (of({"enum": ["x", 2, None, True, ""]}), [{"a": v} for v in ("x", 2, None, True, "")], [{"a": "y"}, {"a": "2"}]),
    (of({"type": "string", "enum": ["one", "two"]}), [{"a": "one"}], [{"a": "on"}, {"a": "three"}, {"a": 1}]),
    (of({"const": {"b": [1, "x"]}}), [{"a": {"b": [1, "x"]}}], [{"a": {"b": [1]}}, {"a": {}}]),
    (of({"type": ["string", "null"]}), [{"a": "x"}, {"a": None}], [{"a": 1}]),
    (of({"type": "integer", "nullable": True}), [{"a": 1}, {"a": None}], [{"a": "x"}]),
    (of({"anyOf": [INTEGER, {"type": "array", "items": STRING}]}), [{"a": 1}, {"a": ["x"]}], [{"a": "x"}, {"a": [1]}]),
    (of({"oneOf": [{"const": "x"}, {"type": "boolean"}]}), [{"a": "x"}, {"a": True}], [{"a": "y"}]),
    (of({"allOf": [STRING, {"maxLength": 2}]}), [{"a": "xy"}], [{"a": "xyz"}, {"a": 1}]),
    (of({"type": "string", "minLength": 2, "maxLength": 3}), [{"a": "xy"}, {"a": "xyz"}], [{"a": "x"}, {"a": "wxyz"}]),
    (of({"type": "string", "pattern": "^[a-c]+/[0-9]{2}$"}), [{"a": "ab/12"}], [{"a": "ab/1"}, {"a": "x ab/12"}]),
    (of({"type": "string", "pattern": "b+"}), [{"a": "xbby"}], [{"a": "xy"}]),
    (of({"type": "string", "pattern": "b+", "maxLength": 3}), [{"a": "xbb"}], [{"a": "xbby"}, {"a": "xy"}]),
    (of({"type": "string", "format": "date"}), [{"a": "2024-02-29"}], [{"a": "2023-02-29"}, {"a": "today"}, {"a": ""}]),
    (of({"format": "date-time"}), [{"a": "2024-02-29T23:59:00.5Z"}], [{"a": "2024-02-29"}, {"a": 1}]),
    (of({"type": "string", "format": "email", "maxLength": 7}), [{"a": "a@bc.de"}], [{"a": "a@bcd.ef"}, {"a": "a.b"}]),
    (of({"type": "string", "format": "uri"}), [{"a": "https://a.example:8/b/c?d=e/f#g"}], [{"a": "a b"}, {"a": "/b"}]),
    (of({"type": "string", "format": "password"}), [{"a": "anything"}], [{"a": 1}]),
    (of({"type": "array", "items": INTEGER}), [{"a": []}, {"a": [1]}, {"a": [1, 2, 3]}], [{"a": ["x"]}, {"a": 1}]),
    (
        of({"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 3}),
        [{"a": [1, 2]}, {"a": [1, 2, 3]}],
        [{"a": []}, {"a": [1]}, {"a": [1, 2, 3, 4]}],
    ),
    (of({"type": "array", "maxItems": 1}), [{"a": []}, {"a": ["x"]}], [{"a": [1, 2]}]),
    (of({"type": "array", "items": INTEGER, "minItems": 1}), [{"a": [1]}, {"a": [1, 2]}], [{"a": []}]),
    (of({"type": "array", "maxItems": 0}), [{"a": []}], [{"a": [1]}]),
    (
        of({"type": "array", "prefixItems": [INTEGER, STRING], "items": False, "minItems": 1}),
        [{"a": [1]}, {"a": [1, "x"]}],
        [{"a": []}, {"a": ["x"]}, {"a": [1, "x", 2]}],
    ),
    (
        of({"type": "array", "prefixItems": [INTEGER], "items": STRING}),
        [{"a": []}, {"a": [1]}, {"a": [1, "x", "y"]}],
        [{"a": [1, 2]}],
    ),
    (properties(a=STRING, b=INTEGER), [{}, {"a": "x"}, {"b": 1}, {"a": "x", "b": 1}], [{"c": 1}, {"a": 1}]),
    (
        {**properties(b=INTEGER, a=STRING, C=INTEGER), "required": ["b"]},
        [{"b": 1}, {"a": "x", "b": 1}, {"a": "x", "b": 1, "C": 2}, {"b": 1, "C": 2}],
        [{}, {"a": "x"}, {"C": 2}],
    ),
    (
        of({**properties(c=INTEGER), "required": ["c"], "additionalProperties": False}),
        [{"a": {"c": 1}}],
        [{"a": {}}, {"a": {"c": "x"}}, {"a": {"d": 1}}],
    ),
    (
        of({"type": "object", "additionalProperties": INTEGER}),
        [{"a": {}}, {"a": {"x": 1, "y": 2}}],
        [{"a": {"x": "y"}}],
    ),
    (
        {**properties(a=INTEGER), "additionalProperties": STRING},
        [{}, {"a": 1}, {"a": 1, "b": "x"}, {"b": "x", "c": "y"}],
        [{"a": "x"}, {"b": 1}],
    ),
    (of({"type": "object"}), [{"a": {}}, {"a": {"x": [1, {"y": None}]}}], [{"a": []}]),
    (of({}), [{"a": 1}, {"a": [None, {"x": "y"}]}], [{}]),
    (of(True), [{"a": 1}], [{}]),
    (TREE, [{"tree": {"name": "x", "below": [{"name": "y"}, {"below": [], "name": "z"}]}}], [{"tree": {"below": []}}]),
    ({"type": "object"}, [{}, {"x": 1}], []),
    (None, [{}], [{"x": 1}]),
    ({"anyOf": [of(STRING), {**properties(b=INTEGER), "required": ["b"]}]}, [{"a": "x"}, {"b": 1}], [{}, {"a": 1}]),
    (of({"properties": {"b": INTEGER}}), [{"a": {"b": 1}}], [{"a": 1}, {"a": {"b": "x"}}]),
    (properties(**{"two words": INTEGER, "ü": STRING}), [{"two words": 1}, {"ü": "x"}], [{"two": 1}]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES)
def test_what_a_schema_allows(
    model: cellmd.Model, grammars: Grammars, schema: Any, right: list[Any], wrong: list[Any]
) -> None:
    for arguments in right:
        assert takes(model, grammars, schema, notation(arguments)), arguments
    for arguments in wrong:
        assert not takes(model, grammars, schema, notation(arguments)), arguments


def schemas() -> st.SearchStrategy[Any]:
    plain = st.sampled_from(
        [STRING, INTEGER, {"type": "number"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["x", 1]}, {}]
    )
    names = st.sampled_from(["a", "b", "Cc", "d_1"])
    return st.recursive(
        plain,
        lambda inner: (
            st.builds(lambda item: {"type": "array", "items": item}, inner)
            | st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)
            | st.builds(
                lambda of_names, needed: {**properties(**of_names), "required": [n for n in of_names if n in needed]},
                st.dictionaries(names, inner, max_size=3),
                st.sets(names),
            )
        ),
        max_leaves=6,
    )


def fitting(schema: Any, draw: Any) -> Any:
    """A value of a schema."""
    if "anyOf" in schema:
        return fitting(draw(st.sampled_from(schema["anyOf"])), draw)
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        return [fitting(schema["items"], draw) for _ in range(draw(st.integers(0, 3)))]
    if kind == "object":
        return {
            name: fitting(inner, draw)
            for name, inner in schema["properties"].items()
            if name in schema["required"] or draw(st.booleans())
        }
    values = {
        "string": st.text(st.sampled_from('ab "{}[],:\n'), max_size=6),
        "integer": st.integers(-1000, 1000),
        "number": st.integers(-1000, 1000).map(lambda n: n / 8),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return draw(values.get(kind or "", st.sampled_from([1, "x", [None], {"a": True}])))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), inner=st.dictionaries(st.sampled_from(["p", "q", "R"]), schemas(), max_size=3))
def test_any_value_of_a_schema_can_be_called(
    model: cellmd.Model, grammars: Grammars, data: st.DataObject, inner: dict[str, Any]
) -> None:
    schema = {**properties(**inner), "required": [*inner]}
    assert takes(model, grammars, schema, notation(fitting(schema, data.draw)))


@pytest.mark.parametrize(
    "schema",
    [
        of({"type": "poem"}),
        of({"enum": []}),
        of({"$ref": "#/$defs/missing"}),
        of({"$ref": "https://example.org/schema"}),
        {**of({"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {**of({"$ref": "#/$defs/a"}), "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {**of({"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        of({"type": "string", "pattern": "("}),
        of({"type": "string", "minLength": -1}),
        of({"type": "array", "minItems": "x"}),
        of({"anyOf": []}),
        of({"anyOf": 1}),
        of({"type": "object", "properties": [1]}),
        {"type": "object", "required": ["a"], "properties": {"b": {}}, "additionalProperties": False},
    ],
)
def test_schemas_that_cannot_be_held_to(model: cellmd.Model, grammars: Grammars, schema: Any) -> None:
    """An error where they have to be; elsewhere the arguments' names are held to and no more."""
    with pytest.raises(ArgumentError):
        grammars.tool_calls([{"name": "f", "parameters": schema}], several=False)
    with pytest.raises(ArgumentError):
        grammars.tool_calls([{"name": "f", "parameters": schema, "strict": True}], several=False, strict=False)
    name = "b" if "b" in schema["properties"] else "a"
    assert takes(model, grammars, schema, notation({name: [1, "x"]}), strict=False)
    assert not takes(model, grammars, schema, notation({"z": 1}), strict=False)


@pytest.mark.parametrize("said", [{"uniqueItems": True}, {"not": STRING}, {"patternProperties": {"^x": STRING}}])
def test_strict_functions_leave_out_nothing_of_what_is_said(
    model: cellmd.Model, grammars: Grammars, said: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentError, match=next(iter(said))):
        grammars.tool_calls([{"name": "f", "parameters": of(said), "strict": True}], several=False)
    assert takes(model, grammars, of(said), notation({"a": [1]}))


def test_deep_and_large_schemas(grammars: Grammars) -> None:
    deep: Any = INTEGER
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    large = properties(**{f"p{i}": {"enum": [f"v{j}" for j in range(50)]} for i in range(1000)})
    for schema in (of(deep), large):
        with pytest.raises(ArgumentError):
            grammars.tool_calls([{"name": "f", "parameters": schema}], several=False)
        assert grammars.tool_calls([{"name": "f", "parameters": properties(a=deep)}], several=False, strict=False)


def test_several_calls_of_several_functions(model: cellmd.Model, grammars: Grammars) -> None:
    functions = [{"name": "f", "parameters": of(INTEGER)}, {"name": "g", "parameters": of(STRING)}]
    both = notation({"a": 1}) + notation({"a": "x"}, "g")
    for several in (True, False):
        form = grammars.tool_calls(functions, several=several)
        taken = 0
        for token in model.processor.tokenizer.encode(both):
            if not form.allowed()[token]:
                break
            form.accept(token)
            taken += 1
        assert (taken == len(model.processor.tokenizer.encode(both))) == several
    for wrong in (notation({"a": 1}, "g"), notation({"a": "x"}), notation({}, "h")):
        form = grammars.tool_calls(functions, several=True)
        taken = True
        for token in model.processor.tokenizer.encode(wrong):
            taken = taken and bool(form.allowed()[token])
            if not taken:
                break
            form.accept(token)
        assert not taken, json.dumps(wrong)
