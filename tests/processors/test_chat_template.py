"""Chat templates run as they were written for, and cannot do harm."""

from __future__ import annotations

from typing import Any

import pytest

from cellmd.errors import ContainerError, PromptError
from cellmd.processors.template import ChatTemplate

USER = [{"role": "user", "content": "hi <b> ü"}]


def render(source: str, **options: Any) -> str:
    return ChatTemplate(source).render(USER, **options)


def test_the_environment_that_templates_expect() -> None:
    assert render("  {% if true %}\nyes\n  {% endif %}\n") == "yes\n"  # blocks are trimmed
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hi <b> ü"}]'
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": [\n  2\n ],\n "b": 1\n}'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{{ bos_token }}{{ undefined_variable }}", special_tokens={"bos_token": "<bos>"}) == "<bos>"
    assert render("{{ enable_thinking }} {{ add_generation_prompt }} {{ tools is none }}") == "False True True"


def test_the_templates_own_refusal_is_told() -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append({}) }}",
        "{% for m in messages %}{{ m.update({'role': 'system'}) }}{% endfor %}",
        "{{ 'x' * 100000000 }}",
        "{{ 100000000 * ['x'] }}",
        "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ messages[3].content.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(PromptError):
        render(source)
    assert USER == [{"role": "user", "content": "hi <b> ü"}]


def test_what_does_not_compile() -> None:
    with pytest.raises(ContainerError, match="does not compile"):
        ChatTemplate("{% for %}")


def test_options_that_a_template_reads() -> None:
    source = "{% set keep = keep | default(false) %}{% set own = 1 %}{{ keep }} {{ own }} {{ tone }} {{ bos_token }}"
    given = {"special_tokens": {"bos_token": "<bos>"}}
    assert render(source, **given) == "False 1  <bos>"
    assert render(source, options={"keep": True, "tone": "dry"}, **given) == "True 1 dry <bos>"
    for name in ("own", "messages", "bos_token", "raise_exception", "no_such"):
        with pytest.raises(PromptError, match=f"no option '{name}'; it has keep, tone"):
            render(source, options={name: "x"}, **given)
