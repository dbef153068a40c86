"""Work that a backend may record and run again, with rows repeated and more than once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import model_cases
from cellmd.api import Model
from cellmd.backends.ops import Tensor
from cellmd.backends.reference.operations import ReferenceOps
from cellmd.container import Container
from transformers_model import row_errors

ROUNDING = 1e-3
"""Between two orders of float32 sums, of the size of a row; see tests/models/test_properties.py."""


class Repeating(ReferenceOps):
    """Does with work that comes again whatever a backend is allowed to do."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[object, object, int]] = []
        self.reserved: list[int] = []

    def numbers_of_rows(self, name: str) -> list[int]:
        """The rows of all that was done under a name."""
        return [n for _, each, n in self.done if each == name]

    def replay(self, key: object, name: str, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        n = len(inputs[0])
        self.done.append((key, name, n))
        for n_more in (0, 2):
            result = function(*(np.concatenate([x, np.repeat(x[-1:], n_more, axis=0)]) for x in inputs))
        return tuple(x[:n] for x in result) if isinstance(result, tuple) else result[:n]

    def replay_whole(self, key: object, name: object, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        self.done.append((key, name, len(inputs[0])))
        for _ in range(2):
            result = function(*(x.copy() for x in inputs))
        return result

    def reserve_(self, cache: Any, n_positions: int) -> None:
        self.reserved.append(n_positions)


def test_an_answer_is_steps_of_one_row(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "deep_shared"), Repeating()
    prompt = model_cases.text_prompt(70)
    with Model(Container.open(path), ReferenceOps()) as plain, Model(Container.open(path), ops) as recorded:
        want = plain.generate(prompt, temperature=0, max_tokens=9).token_ids
        assert recorded.generate(prompt, temperature=0, max_tokens=9).token_ids == want
        assert ops.numbers_of_rows("step") == [1] * (len(want) - 1)
        assert ops.numbers_of_rows("writing") == [70]
        assert ops.numbers_of_rows("answering") == [1]
        assert len({key for key, _, _ in ops.done}) == 1


def test_chunks_of_a_prompt_and_media(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "tiny"), Repeating()
    with Model(Container.open(path), ReferenceOps()) as plain, Model(Container.open(path), ops) as recorded:
        prompt = model_cases.media_prompt(plain)
        logits = []
        for model in (plain, recorded):
            model._runner.cache.chunk = 40
            logits.append(model_cases.step_logits(model, prompt, [7]))
        assert row_errors(*logits).max() < ROUNDING
        n_whole, n_last = divmod(len(prompt), 40)
        assert n_last
        assert ops.numbers_of_rows("writing") == [*[40] * n_whole, n_last]
        assert ops.numbers_of_rows("answering") == [1]
        assert len(ops.done) == n_whole + 2 + len(prompt.media)


def test_many_answers_are_steps_of_a_row_each(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "tiny"), Repeating()
    prompts = [model_cases.text_prompt(n, seed=n) for n in (5, 70, 33)]
    with Model(Container.open(path), ops) as model:
        alone = [list(model.generate(prompt, temperature=0, max_tokens=8).token_ids) for prompt in prompts]
        of_model = {key for key, _, _ in ops.done}
        assert model_cases.answer_together(model, prompts, max_tokens=8) == alone
        assert max(ops.numbers_of_rows("step")) > 1
        assert len({key for key, _, _ in ops.done} - of_model) == 1


def test_caches_are_told_before_they_grow(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "tiny"), Repeating()
    with Model(Container.open(path), ops) as model:
        n_caches = sum(layer.owns_kv for layer in model.config.text.layers)
        model.generate(model_cases.text_prompt(20), temperature=0, max_tokens=3)
        model.generate(model_cases.text_prompt(10), temperature=0, max_tokens=2)
    assert ops.reserved == [n for n in (20, 21, 22) for _ in range(n_caches)]
