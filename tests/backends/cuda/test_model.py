"""Whole small models on torch's CPU device, where everything is float32, against the reference backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cellmd
import model_cases
from cellmd.api import Model
from cellmd.backends.cuda.plain import TorchOps
from cellmd.container import Container
from transformers_model import row_errors

pytestmark = pytest.mark.reference

ROUNDING = 1e-3
"""Between two orders of float32 sums, of the size of a row; see tests/models/test_properties.py."""

DEMO = Path(cellmd.__file__).parent / "demo"


@pytest.mark.parametrize(
    ("shape", "recipe"),
    [
        ("tiny", "float"),
        ("tiny", "aggressive"),
        ("deep_shared", "qat"),
        ("wide_heads", "balanced"),
        ("no_ple", "float"),
    ],
)
def test_against_the_reference_backend(tmp_path: Path, shape: str, recipe: str) -> None:
    """Every modality, a prompt longer than the windows, and steps after it."""
    path = model_cases.build(tmp_path, shape, recipe)
    with cellmd.load(path, backend="reference") as want, Model(Container.open(path), TorchOps()) as got:
        prompt = model_cases.media_prompt(want)
        soft = (model_cases.soft_tokens(model, prompt) for model in (got, want))
        assert max(row_errors(mine, theirs).max() for mine, theirs in zip(*soft, strict=True)) < ROUNDING
        assert row_errors(got.logits(prompt), want.logits(prompt)).max() < ROUNDING
        answer = list(want.generate(prompt, temperature=0, max_tokens=12).token_ids)
        steps = model_cases.step_logits(got, prompt, answer)
        assert row_errors(steps, model_cases.step_logits(want, prompt, answer)).max() < ROUNDING


def test_the_demo_answers(tmp_path: Path) -> None:
    """The trained model says the same as on the reference backend, of text, a picture and a sound."""
    path = tmp_path / "demo.cellmd"
    cellmd.convert(DEMO / "checkpoint", path)
    asked = [
        {"images": str(DEMO / "media" / "scene.jpg")},
        {"audio": str(DEMO / "media" / "sentence.wav")},
    ]
    with cellmd.load(path, backend="reference") as want, Model(Container.open(path), TorchOps()) as got:
        for media in asked:
            prompt = want.prepare("What is this?", **media)
            answers = [model.generate(prompt, temperature=0, max_tokens=16).text for model in (got, want)]
            assert answers[0] == answers[1]


def test_many_at_once_answer_as_alone(tmp_path: Path) -> None:
    path = model_cases.build(tmp_path, "deep_shared", "aggressive")
    prompts = [model_cases.text_prompt(n, seed=n) for n in (5, 70, 33)]
    with Model(Container.open(path), TorchOps()) as model:
        alone = [list(model.generate(prompt, temperature=0, max_tokens=8).token_ids) for prompt in prompts]
        together = model_cases.answer_together(model, prompts, max_tokens=8)
    assert together == alone
    assert np.unique(np.concatenate(together)).size > 3
