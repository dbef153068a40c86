"""The sampler against a form of itself that is plainly right: dictionaries, loops, one rule after another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellmd.errors import ArgumentError
from cellmd.runtime.sampler import Sampler, Sampling, candidates, logprob

VOCAB = 24
vectors = st.lists(st.floats(-30, 30, width=32), min_size=VOCAB, max_size=VOCAB)
options = st.builds(
    Sampling,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 5),
)


def naive_candidates(logits: list[float], options: Sampling) -> dict[int, float]:
    """The tokens that may be drawn, and their probabilities among those that top_k left."""
    scores = {i: float(np.float32(x)) / options.temperature for i, x in enumerate(logits)}
    if options.top_k:
        kth = sorted(scores.values(), reverse=True)[: options.top_k][-1]
        scores = {i: x for i, x in scores.items() if x >= kth}
    top = max(scores.values())
    total = math.fsum(math.exp(x - top) for x in scores.values())
    # By score: of two that differ by less than a probability can show, the higher is still the likelier.
    order = sorted(scores, key=lambda i: (-scores[i], i))
    left = [(math.exp(scores[i] - top) / total, -i) for i in order]
    if options.top_p < 1:
        kept, reached = [], 0.0
        for probability, key in left:
            if reached < options.top_p:
                kept.append((probability, key))
            reached += probability
        left = kept
    left = [(p, key) for p, key in left if p >= options.min_p * left[0][0]]
    return {-key: p for p, key in left}


@settings(max_examples=300, deadline=None)
@given(vectors, options)
@example([-1e-38] + [0.0] * (VOCAB - 1), Sampling(temperature=1.0, top_k=0, top_p=0.5, min_p=0.0, seed=0))
def test_candidates_are_those_of_the_rules(logits: list[float], options: Sampling) -> None:
    want = naive_candidates(logits, options)
    ids, probabilities = candidates(np.array(logits, np.float32), options)
    got = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    assert all(math.isclose(got[i], want[i], rel_tol=1e-9, abs_tol=1e-300) for i in got.keys() & want.keys())
    if got.keys() != want.keys():
        # Whether a sum reaches top_p, or a probability min_p, may hang on its last digit: then one token may differ.
        shorter, longer = sorted((got, want), key=len)
        assert len(longer) - len(shorter) == 1
        (last,) = longer.keys() - shorter.keys()
        reached = math.isclose(math.fsum(shorter.values()), options.top_p, rel_tol=1e-9)
        assert reached or math.isclose(longer[last], options.min_p * max(longer.values()), rel_tol=1e-9)


@settings(max_examples=100, deadline=None)
@given(vectors, options)
def test_draws_are_candidates_and_repeat_with_the_seed(logits: list[float], options: Sampling) -> None:
    row = np.array(logits, np.float32)
    drawn = [[sampler.choose(row) for _ in range(8)] for sampler in (Sampler(options), Sampler(options))]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) <= set(candidates(row, options)[0].tolist())


@settings(deadline=None)
@given(vectors)
def test_greedy_takes_the_first_of_the_likeliest(logits: list[float]) -> None:
    row = np.array(logits, np.float32)
    assert Sampler(Sampling(temperature=0)).choose(row) == int(row.argmax())


def test_draws_follow_the_probabilities() -> None:
    """20,000 draws of four tokens: each count within five standard deviations."""
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    sampler, n = Sampler(Sampling(seed=1)), 20_000
    row = np.log(probabilities).astype(np.float32)
    counts = np.bincount([sampler.choose(row) for _ in range(n)], minlength=4)
    deviation = np.sqrt(n * probabilities * (1 - probabilities))
    assert (np.abs(counts - n * probabilities) < 5 * deviation).all()


def test_without_a_seed_answers_differ() -> None:
    row = np.zeros(1000, np.float32)
    draws = {tuple(Sampler(Sampling()).choose(row) for _ in range(4)) for _ in range(3)}
    assert len(draws) == 3


def test_repetition_penalty_covers_prompt_and_answer() -> None:
    row = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    before = row.copy()
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), seen=[0])
    assert [sampler.choose(row) for _ in range(3)] == [1, 0, 0]  # 2 -> 1; then 1.5 -> 0.75; nothing lower than 1 wins
    assert np.array_equal(row, before)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), seen=[2])
    assert sampler._penalised(row).tolist() == [2.0, 1.5, -1.5, np.float32(-1.2)]


def test_seed_of_known_draws() -> None:
    """These ids must never change: the same seed is the same text in every release."""
    row = np.linspace(0, 3, 50, dtype=np.float32)
    sampler = Sampler(Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=1234))
    assert [sampler.choose(row) for _ in range(8)] == KNOWN_DRAWS


KNOWN_DRAWS = [21, 44, 26, 46, 45, 48, 46, 45]


@settings(deadline=None)
@given(vectors, st.integers(0, VOCAB - 1))
def test_logprob(logits: list[float], token: int) -> None:
    row = np.array(logits, np.float32)
    total = math.fsum(math.exp(float(x)) for x in row)
    assert math.isclose(logprob(row, token), math.log(math.exp(float(row[token])) / total), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("temperature", "hot"),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be .*, found {value!r}"):
        Sampling(**{name: value})
