"""Every border of the model against transformers, on the same weights: float ones, and decoded INT4 ones.

How close is close: `transformers_model.assert_as_good`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

import cellmd
import model_cases
from cellmd.api import Model
from cellmd.processors.features import Prompt
from cellmd.runtime.batch import Part
from checkpoints import SHAPES

pytestmark = pytest.mark.reference

CASES = [(shape, "float") for shape in SHAPES] + [
    (shape, "aggressive") for shape in ("tiny", "deep_shared", "wide_heads", "text_only")
]
CONTEXTS: dict[str, dict[str, int]] = {  # attention of the audio tower beyond the published one
    "ahead": {"attention_chunk_size": 7, "attention_context_left": 6, "attention_context_right": 3},
    "far_ahead": {"attention_chunk_size": 3, "attention_context_left": 13, "attention_context_right": 5},
    "narrow": {"attention_chunk_size": 4, "attention_context_left": 2, "attention_context_right": 1},
}


@dataclass(frozen=True)
class Case:
    model: Model
    pair: Any

    @cached_property
    def prompt(self) -> Prompt:
        return model_cases.media_prompt(self.model)


def make_case(folder: Any, shape: str, recipe: str, **overrides: Any) -> Case:
    from transformers_model import ReferencePair

    model = cellmd.load(model_cases.build(folder, shape, recipe, **overrides), backend="reference")
    return Case(model, ReferencePair(model._open(), folder / "decoded"))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), *request.param)


@pytest.mark.parametrize("media", [False, True], ids=["text", "media"])
def test_every_border_of_the_decoder(case: Case, media: bool) -> None:
    """Embeddings with soft tokens in them, per-layer inputs, hidden states after each layer, logits; in a prompt
    longer than the window."""
    from transformers_model import assert_as_good, decoder_borders

    prompt = case.prompt if media else model_cases.text_prompt(60)
    assert len(prompt) > max(layer.window for layer in case.model.config.text.layers)
    float32, float64 = case.pair(lambda model: decoder_borders(model, prompt))
    ours = model_cases.decoder_borders(case.model, prompt)
    assert ours.keys() == float64.keys()
    for name in float64:
        assert_as_good(ours[name], float32[name], float64[name], name)


def test_soft_tokens(case: Case) -> None:
    from transformers_model import assert_as_good, soft_tokens

    float32, float64 = case.pair(lambda model: soft_tokens(model, case.prompt))
    for i, ours in enumerate(model_cases.soft_tokens(case.model, case.prompt)):
        assert_as_good(ours, float32[i], float64[i], f"medium {i}")


@pytest.mark.parametrize("context", CONTEXTS)
def test_soft_tokens_of_other_audio_contexts(tmp_path: Any, context: str) -> None:
    from transformers_model import assert_as_good, soft_tokens

    case = make_case(tmp_path, "sound_only", "float", audio_config=CONTEXTS[context])
    float32, float64 = case.pair(lambda model: soft_tokens(model, case.prompt))
    for i, ours in enumerate(model_cases.soft_tokens(case.model, case.prompt)):
        assert_as_good(ours, float32[i], float64[i], f"medium {i}")


def test_greedy_answer_and_the_logits_of_each_step(case: Case) -> None:
    from transformers_model import assert_as_good, greedy

    n, end_ids = 24, case.model.defaults.end_ids
    float32, float64 = case.pair(lambda model: greedy(model, case.prompt, n, end_ids))
    assert float32["ids"].tolist() == float64["ids"].tolist()  # no tie that rounding decides
    result = case.model.generate(case.prompt, temperature=0, max_tokens=n)
    assert list(result.token_ids) == float64["ids"].tolist()

    steps = model_cases.step_logits(case.model, case.prompt, list(result.token_ids))
    assert_as_good(steps, float32["logits"], float64["logits"], "steps")


def test_chunked_prefill(case: Case) -> None:
    """In chunks of 7 and with only the last token's logits asked for: still the reference's."""
    from transformers_model import assert_as_good, inputs

    prompt, runner = case.prompt, case.model._runner
    float32, float64 = case.pair(lambda model: model(**inputs(model, prompt)).logits[0, -3:])
    sequence, _ = runner.start(prompt, slot=0)
    while sequence.n_pending > 7:
        assert runner.advance([Part(sequence, 7, 0)]) is None
    got = np.array(runner.advance([Part(sequence, sequence.n_pending, min(3, sequence.n_pending))]))
    assert_as_good(got, float32[-len(got) :], float64[-len(got) :], "last rows")
