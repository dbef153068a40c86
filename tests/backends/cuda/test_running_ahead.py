"""Steps begun before the host has chosen: the answers are those of one step after another, whatever is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model_cases
from cellmd.api import Model
from cellmd.backends.cuda.attention import Ints
from cellmd.backends.cuda.plain import TorchOps
from cellmd.container import Container
from cellmd.errors import ContextLengthError
from cellmd.runtime.logits import Logits
from cellmd.runtime.sampler import Sampler, Sampling

pytestmark = pytest.mark.reference


class Ahead(TorchOps):
    """Runs ahead, and counts the passes; every `wrong`-th guess is another token."""

    runs_ahead = True

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self._wrong = wrong
        self.n_passes = self.n_guesses = 0

    def begin(self) -> None:
        self.n_passes += 1

    def guess(self, values: Any, ids: Ints, *how: Any) -> tuple[Ints, Ints]:
        guessed, report = super().guess(values, ids, *how)
        self.n_guesses += 1
        if self._wrong and self.n_guesses % self._wrong == 0:
            guessed.device[:] = report.device[:, 0] = (guessed.device + 1) % 100
        return guessed, report


WAYS: dict[str, dict[str, Any]] = {
    "likeliest": {"temperature": 0},
    "drawn": {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 5},
    "of all": {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 6},
    "penalties": {"temperature": 1.0, "top_k": 40, "seed": 7, "repetition_penalty": 1.3},
    "probabilities": {"temperature": 1.5, "top_k": 40, "seed": 8, "logprobs": True},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_cases.build(tmp_path_factory.mktemp("ahead"), "deep_shared", "aggressive")


@pytest.mark.parametrize("wrong", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_one_answer(path: Path, way: str, wrong: int) -> None:
    prompt = model_cases.text_prompt(20, seed=1)
    with Model(Container.open(path), TorchOps()) as model:
        want = model.generate(prompt, max_tokens=12, **WAYS[way])
    with Model(Container.open(path), Ahead(wrong)) as model:
        for _ in range(2):
            got = model.generate(prompt, max_tokens=12, **WAYS[way])
            assert got.token_ids == want.token_ids
            assert got.logprobs == pytest.approx(want.logprobs, rel=1e-5)


@pytest.mark.parametrize("wrong", [0, 3])
def test_many_answers(path: Path, wrong: int) -> None:
    prompts = [model_cases.text_prompt(n, seed=n) for n in (5, 70, 33)]
    with Model(Container.open(path), TorchOps()) as model:
        alone = [list(model.generate(prompt, temperature=0, max_tokens=9).token_ids) for prompt in prompts]
    with Model(Container.open(path), Ahead(wrong)) as model:
        assert model_cases.answer_together(model, prompts, max_tokens=9) == alone


def test_right_guesses_cost_no_pass(path: Path) -> None:
    """A pass for the prompt and one for each token but the last; ahead, but for a first token that nobody guesses."""
    ops = Ahead()
    with Model(Container.open(path), ops) as model:
        before = ops.n_passes
        n_tokens = len(model.generate(model_cases.text_prompt(20, seed=1), temperature=0, max_tokens=12).token_ids)
        assert n_tokens == 12
        assert ops.n_passes - before == 12


def test_the_end_of_the_context(path: Path) -> None:
    with Model(Container.open(path), Ahead(), context=32) as model:
        assert len(model.generate(model_cases.text_prompt(20, seed=1), temperature=0, max_tokens=12).token_ids) == 12


def test_no_memory_for_a_step_that_nobody_asks_for(path: Path) -> None:
    class Full(Ahead):
        def reserve_(self, cache: Any, n_positions: int) -> None:
            if n_positions > 31:
                raise ContextLengthError("full")

    with Model(Container.open(path), Full()) as model:
        prompt = model_cases.text_prompt(20, seed=1)
        assert len(model.generate(prompt, temperature=0, max_tokens=12).token_ids) == 12
        with pytest.raises(ContextLengthError, match="full"):
            model.generate(prompt, temperature=0, max_tokens=13)


@pytest.mark.parametrize("seed", range(20))
def test_a_guess_is_what_the_sampler_chooses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ops = TorchOps()
    options = Sampling(
        temperature=float(rng.uniform(0.1, 3)),
        top_k=int(rng.integers(1, 65)),
        top_p=float(rng.uniform(0.1, 1)),
        min_p=float(rng.choice([0.0, 0.05])),
        seed=seed,
    )
    logits = torch.from_numpy(rng.standard_normal((1, 500), dtype=np.float32) * 3)
    sampler = Sampler(options)
    foreseen = sampler.foreseen()
    assert foreseen is not None
    for draw in foreseen:
        guessed, report = ops.guess(*ops.top_k(logits, 65), *(ops.numbers([x]) for x in draw))
        assert sampler.choose(Logits.of(ops, logits)[0]) == int(guessed.device) == int(report.device[0, 0])
