"""JSON schemas of tools as grammars of the notation in which the model writes calls.

    call:NAME{KEY:VALUE,...}      VALUE = <|"|>text<|"|> | number | true | false | null | {...} | [...]

Types, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, minLength,
maxLength, pattern, format, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, anyOf, oneOf (at least one
of them), allOf, $ref within the schema and nullable are held to. Where there are properties, others may come only if
the schema says so. Keys come in the order in which the model was shown them: the chat template sorts them. What else a
schema may say (`_NOT_HELD`) is an error for a function with `strict: true`; other functions are called without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cellmd.errors import ArgumentError
from cellmd.server.formats import FORMATS

_MOST_RULES = 4096
_MOST_REFERENCES = 32
_PLAIN_KEY = re.compile(r"[^\s:,{}\[\]<\"](?:[^:,{}\[\]<\"\n]*[^\s:,{}\[\]<\"])?")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": _LIMITS,
}
_NOT_HELD = (
    *("not", "if", "uniqueItems", "contains", "minProperties", "maxProperties", "patternProperties", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
)
_COMMON = [
    'object: "{" (pair ("," pair)*)? "}"\npair: KEY ":" value\nlist: "[" (value ("," value)*)? "]"',
    r"KEY: /[A-Za-z_][A-Za-z0-9_-]{0,63}/",
    r"INTEGER: /-?(0|[1-9][0-9]{0,17})/",
    r"NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/",
    r"TEXT: /(.|\n)*/",
]


def call_grammar(
    functions: Sequence[Mapping[str, Any]], begin: str, end: str, quote: str, *, several: bool, strict: bool
) -> str:
    """A Lark grammar, as llguidance reads it, of one call of one of the functions, or several.

    begin, end, quote: the special tokens, as the grammar writes them. strict: a schema that cannot be held to is an
    error (ArgumentError), as it is for functions with `strict: true`; otherwise its arguments' names alone are held to.
    """
    rules = _Rules(quote)
    calls = []
    for function in functions:
        name = _text("call:" + str(function["name"]))
        before = len(rules.lines)
        try:
            arguments = rules.arguments(function.get("parameters"), complete=bool(function.get("strict")))
        except (ArgumentError, RecursionError, TypeError, ValueError) as error:
            if strict or function.get("strict"):
                reason = error if isinstance(error, ArgumentError) else "it is malformed or nested too deep"
                raise ArgumentError(f"the parameters of {function['name']!r} cannot be held to: {reason}") from None
            del rules.lines[before:]
            arguments = rules.arguments(names_alone(function.get("parameters")))
        calls.append(f"{name} {arguments}")
    start = [f"start: call{'+' if several else ''}", f"call: {begin} ({' | '.join(calls)}) {end}"]
    return "\n".join([*start, *rules.lines, f"value: {rules.any_value}", *_COMMON])


def names_alone(schema: Any) -> dict[str, Any]:
    """Of a schema of arguments no more than their names."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    names = [key for key in properties if isinstance(key, str) and key] if isinstance(properties, dict) else []
    return {"type": "object", "properties": dict.fromkeys(names, True)}


class _Rules:
    """The rules of some schemas; lines grow as they are asked for."""

    def __init__(self, quote: str) -> None:
        self.lines: list[str] = []
        self.any_value = f'{quote} TEXT {quote} | NUMBER | "true" | "false" | "null" | object | list'
        self._quote = quote
        self._root: Any = {}
        self._complete = False
        self._named: dict[str, str] = {}
        self._n = 0

    def arguments(self, schema: Any, *, complete: bool = False) -> str:
        """complete: all that the schema says has to be held to."""
        self._root = schema
        self._complete = complete
        self._named = {}
        if schema is None:
            return '"{" "}"'
        found = self._merged(schema)
        if "anyOf" in found or "oneOf" in found:
            return self._value(schema)
        return self._object(found)

    def _rule(self, body: str) -> str:
        """A new rule's name."""
        name = self._name()
        self.lines.append(f"{name}: {body}")
        return name

    def _name(self) -> str:
        self._n += 1
        if self._n > _MOST_RULES:
            raise ArgumentError(f"the schemas of the tools need more than {_MOST_RULES} rules")
        return f"r{self._n}"

    # ---- values ---------------------------------------------------------------------------------------------------

    def _value(self, schema: Any) -> str:
        """What stands for a value of this schema."""
        if isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and len(schema) == 1:
            return self._referenced(schema["$ref"])
        found = self._merged(schema)
        if "const" in found:
            return self._literal(found["const"])
        if "enum" in found:
            if not isinstance(found["enum"], list) or not found["enum"]:
                raise ArgumentError("an enum has no values")
            return self._rule(" | ".join(self._literal(value) for value in found["enum"]))
        for several in ("anyOf", "oneOf"):
            if several in found:
                base = {key: value for key, value in found.items() if key != several}
                return self._alternatives([_together(base, self._merged(one)) for one in found[several]])
        kinds = found.get("type")
        if found.get("nullable") is True and kinds is not None:
            kinds = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
        if isinstance(kinds, list):
            plain = {key: value for key, value in found.items() if key != "nullable"}
            return self._alternatives([{**plain, "type": kind} for kind in kinds])
        return self._of_kind(kinds if kinds is not None else _kind(found), found)

    def _of_kind(self, kind: Any, schema: Mapping[str, Any]) -> str:
        if kind is None:
            return "value"
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return f"{self._quote} {self._text(schema)} {self._quote}"
        if kind in ("integer", "number"):
            return self._number(kind, schema)
        if kind == "boolean":
            return '("true" | "false")'
        if kind == "null":
            return '"null"'
        raise ArgumentError(f"{str(kind)[:50]!r} is no type of JSON")

    def _alternatives(self, schemas: Sequence[Any]) -> str:
        if not schemas:
            raise ArgumentError("there are no alternatives to choose from")
        return self._rule(" | ".join(self._value(schema) for schema in schemas))

    def _referenced(self, pointer: str) -> str:
        """A rule of its own for what is referred to, so that a schema may refer to itself."""
        if pointer not in self._named:
            self._named[pointer] = name = self._name()
            target = self._target(pointer)
            if isinstance(target, dict) and self._merged(target).get("$ref") == pointer:
                raise ArgumentError(f"{pointer} refers to itself alone")
            body = self._value(target)
            if body == name:
                raise ArgumentError(f"{pointer} refers to itself alone")
            self.lines.append(f"{name}: {body}")
        return self._named[pointer]

    def _target(self, pointer: str) -> Any:
        if not pointer.startswith("#"):
            raise ArgumentError(f"$ref {pointer[:100]!r} leads out of the schema")
        target = self._root
        for step in pointer[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            target = target.get(step) if isinstance(target, dict) else None
            if target is None:
                raise ArgumentError(f"$ref {pointer[:100]!r} leads nowhere")
        return target

    def _merged(self, schema: Any, depth: int = 0) -> dict[str, Any]:
        """A schema with its references and allOf taken into it."""
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise ArgumentError("a schema is no object")
        if depth > _MOST_REFERENCES:
            raise ArgumentError("the schema refers to itself without end")
        not_held = next((key for key in _NOT_HELD if key in schema), None) if self._complete else None
        if not_held is not None:
            raise ArgumentError(f"{not_held} is a condition that calls are not held to")
        found = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        parts = [self._target(schema["$ref"])] if isinstance(schema.get("$ref"), str) else []
        parts += schema["allOf"] if isinstance(schema.get("allOf"), list) else []
        for part in parts:
            found = _together(found, self._merged(part, depth + 1))
        return found

    # ---- kinds ----------------------------------------------------------------------------------------------------

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        if not isinstance(properties, dict) or not all(
            isinstance(key, str) and key for key in [*properties, *required]
        ):
            raise ArgumentError("properties or required are malformed")
        others = schema.get("additionalProperties", not properties)
        for key in required:
            if key not in properties and others is False:
                raise ArgumentError(f"{key!r} is required, but may not be there")
        described = {**dict.fromkeys(required, others), **properties}
        pairs = [
            (f'{self._key(key)} ":" {self._value(described[key])}', key in required)
            for key in sorted(described, key=str.lower)
        ]
        more = "" if others is False else f'{self._other_key(described)} ":" {self._value(others)}'
        # From the last pair to the first: what may follow, once there is something before it and while there is not.
        after, first = (f'("," {more})*', f'({more} ("," {more})*)?') if more else ('""', '""')
        for pair, is_required in reversed(pairs):
            after = self._rule(after)
            first = f"{pair} {after}" if is_required else f"{pair} {after} | {self._rule(first)}"
            after = f'"," {pair} {after}' if is_required else f'"," {pair} {after} | {after}'
        return self._rule(f'"{{" {self._rule(first)} "}}"')

    def _other_key(self, described: Mapping[str, Any]) -> str:
        """Any key but these."""
        if not described:
            return "KEY"
        name = self._name().upper()
        self.lines.append(f"{name}: KEY & ~({' | '.join(_text(key) for key in described)})")
        return name

    def _array(self, schema: Mapping[str, Any]) -> str:
        firsts = [self._value(item) for item in schema.get("prefixItems") or []]
        items: Any = schema.get("items", True)
        least, most = _count(schema, "minItems") or 0, _count(schema, "maxItems")
        if isinstance(items, list):  # the older form of prefixItems
            firsts, items = [self._value(item) for item in items], schema.get("additionalItems", True)
        if firsts:
            return self._rule(f'"[" {self._tuple(firsts, items, least, most)} "]"')
        if most == 0 or items is False:
            return '"[" "]"'
        item = self._value(items)
        more = _times(f'("," {item})', max(least - 1, 0), None if most is None else most - 1)
        listed = f"{item} {more}"
        return self._rule(f'"[" {listed if least else f"({listed})?"} "]"')

    def _tuple(self, firsts: Sequence[str], items: Any, least: int, most: int | None) -> str:
        rest = "" if items is False else self._value(items)
        most_more = None if most is None else max(most - len(firsts), 0)
        tail = _times(f'("," {rest})', max(least - len(firsts), 0), most_more) if rest else '""'
        for i in range(len(firsts) - 1, 0, -1):
            tail = self._rule(tail)
            whole = f'"," {firsts[i]} {tail}'
            tail = whole if i < least else f"({whole})?"
        whole = f"{firsts[0]} {self._rule(tail)}"
        return whole if least else f"({whole})?"

    def _text(self, schema: Mapping[str, Any]) -> str:
        """What stands for the characters of a text: all that is said of them at once."""
        forms = []
        pattern, least, most = schema.get("pattern"), _count(schema, "minLength") or 0, _count(schema, "maxLength")
        if isinstance(pattern, str):
            before = "" if pattern.startswith("^") else "(.|\\n)*"
            after = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(.|\\n)*"
            inner = pattern.removeprefix("^").removesuffix("$") if not after else pattern.removeprefix("^")
            forms.append(f"/{before}({_escaped_pattern(inner)}){after}/")
        if schema.get("format") in FORMATS:
            forms.append(f"/{_escaped_pattern(FORMATS[schema['format']])}/")
        if least or most is not None:
            forms.append(f"/(.|\\n){{{least},{'' if most is None else most}}}/")
        if len(forms) < 2:
            return forms[0] if forms else "TEXT"
        name = self._name().upper()
        self.lines.append(f"{name}: {' & '.join(forms)}")
        return name

    def _number(self, kind: str, schema: Mapping[str, Any]) -> str:
        limits = {key: schema[key] for key in _LIMITS if key in schema}
        if not limits:
            return "INTEGER" if kind == "integer" else "NUMBER"
        return self._rule(f"%json {json.dumps({'type': kind, **limits})}")

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote} {_text(value)} {self._quote}" if value else f"{self._quote} {self._quote}"
        if isinstance(value, dict):
            pairs = [f'{self._key(key)} ":" {self._literal(inner)}' for key, inner in value.items()]
            return " ".join(['"{"', ' "," '.join(pairs), '"}"'])
        if isinstance(value, list):
            return " ".join(['"["', ' "," '.join(self._literal(inner) for inner in value), '"]"'])
        return _text(json.dumps(value))

    def _key(self, key: str) -> str:
        plain = _PLAIN_KEY.fullmatch(key)
        return _text(key) if plain else f"{self._quote} {_text(key)} {self._quote}"


def _kind(schema: Mapping[str, Any]) -> str | None:
    """The type that a schema without one must mean."""
    return next((kind for kind, keys in _OF_TYPE.items() if any(key in schema for key in keys)), None)


def _together(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of what fits both."""
    both = {**one, **other}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(one.get(key), dict) and isinstance(other.get(key), dict):
            both[key] = {**one[key], **other[key]}
    if isinstance(one.get("required"), list) and isinstance(other.get("required"), list):
        both["required"] = list(dict.fromkeys([*one["required"], *other["required"]]))
    return both


def _count(schema: Mapping[str, Any], key: str) -> int | None:
    value = schema.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= 100_000):
        raise ArgumentError(f"{key} must be a whole number from 0 to 100000")
    return value


def _times(what: str, least: int, most: int | None) -> str:
    return '""' if most == 0 else f"{what}{{{least},{'' if most is None else most}}}"


def _escaped_pattern(pattern: str) -> str:
    """A pattern between slashes."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern).replace("\n", "\\n")


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
