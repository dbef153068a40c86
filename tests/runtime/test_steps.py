"""Steps that a backend may record and run again, with rows repeated and more than once."""

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


class Repeating(ReferenceOps):
    """Does with steps whatever a backend is allowed to do."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[object, int]] = []
        self.reserved: list[int] = []

    def replay(self, key: object, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        n = len(inputs[0])
        self.steps.append((key, n))
        for n_more in (0, 2):
            result = function(*(np.concatenate([x, np.repeat(x[-1:], n_more)]) for x in inputs))
        return result[:n]

    def reserve_(self, cache: Any, n_positions: int) -> None:
        self.reserved.append(n_positions)


def test_an_answer_is_steps_of_one_row(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "deep_shared"), Repeating()
    prompt = model_cases.text_prompt(70)
    with Model(Container.open(path), ReferenceOps()) as plain, Model(Container.open(path), ops) as recorded:
        want = plain.generate(prompt, temperature=0, max_tokens=9).token_ids
        assert recorded.generate(prompt, temperature=0, max_tokens=9).token_ids == want
        assert [n for _, n in ops.steps] == [1] * (len(want) - 1)
        assert len({key for key, _ in ops.steps}) == 1


def test_many_answers_are_steps_of_a_row_each(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "tiny"), Repeating()
    prompts = [model_cases.text_prompt(n, seed=n) for n in (5, 70, 33)]
    with Model(Container.open(path), ops) as model:
        alone = [list(model.generate(prompt, temperature=0, max_tokens=8).token_ids) for prompt in prompts]
        of_model = {key for key, _ in ops.steps}
        assert model_cases.answer_together(model, prompts, max_tokens=8) == alone
        assert max(n for _, n in ops.steps) > 1
        assert len({key for key, _ in ops.steps} - of_model) == 1


def test_caches_are_told_before_they_grow(tmp_path: Path) -> None:
    path, ops = model_cases.build(tmp_path, "tiny"), Repeating()
    with Model(Container.open(path), ops) as model:
        n_caches = sum(layer.owns_kv for layer in model.config.text.layers)
        model.generate(model_cases.text_prompt(20), temperature=0, max_tokens=3)
        model.generate(model_cases.text_prompt(10), temperature=0, max_tokens=2)
    assert ops.reserved == [n for n in (20, 21, 22) for _ in range(n_caches)]
