"""The model's own chat template: a Jinja program, run in a sandbox.

The environment is the one that such templates are written for (transformers' `apply_chat_template`): blocks trimmed,
loop controls, `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML alone. Templates come with files from
strangers, so they get plain data only and their output is bounded.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cellmd.errors import ContainerError, PromptError

_MOST_CHARACTERS = 16 << 20


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        """Raises ContainerError if the template does not compile."""
        import jinja2

        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._reads = _read_names(environment.parse(source)) - environment.globals.keys()
        except jinja2.TemplateError as error:
            raise ContainerError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        options: Mapping[str, Any] | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> str:
        """The text of a conversation up to where the model is to answer.

        messages, tools, options: plain JSON data. special_tokens: variables of the template such as `bos_token`.
        options: other variables that it reads. Raises PromptError for one that it does not read, and with the
        template's own words if it refuses the messages.
        """
        variables = {
            **(special_tokens or {}),
            "messages": messages,
            "tools": tools,
            "enable_thinking": thinking,
            "add_generation_prompt": True,
        }
        free = sorted(self._reads - variables.keys())
        unknown = next((name for name in options or {} if name not in free), None)
        if unknown is not None:
            raise PromptError(f"the chat template has no option {unknown[:100]!r}; it has {', '.join(free) or 'none'}")
        variables |= options or {}
        pieces: list[str] = []
        n_characters = 0
        try:
            for piece in self._template.generate(variables):
                n_characters += len(piece)
                if n_characters > _MOST_CHARACTERS:
                    raise PromptError(f"the chat template wrote more than {_MOST_CHARACTERS:,} characters")
                pieces.append(piece)
        except PromptError:
            raise
        except Exception as error:  # template errors, and whatever its expressions raise on messages of another form
            raise PromptError(f"the chat template refuses the messages: {error}") from error
        return "".join(pieces)


def _read_names(template: Any) -> set[str]:
    """The variables that a template takes from outside: those that it never sets, or sets from what they were
    (`x = x | default(...)`)."""
    from jinja2 import nodes
    from jinja2.meta import find_undeclared_variables

    stored = {name.name for name in template.find_all(nodes.Name) if name.ctx == "store"}
    kept = {
        assign.target.name
        for assign in template.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name)
        and any(name.name == assign.target.name for name in assign.node.find_all(nodes.Name))
    }
    found: set[str] = find_undeclared_variables(template)
    return found - (stored - kept)


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also refuses to multiply text or lists into something enormous."""

        intercepted_binops = frozenset(["*"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(sequence, "__len__") and len(sequence) * times > _MOST_CHARACTERS:
                    raise TemplateError("a repetition is too long")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
