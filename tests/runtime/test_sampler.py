"""The sampler against two forms of itself: one that is plainly right, dictionaries and loops, one rule at a time, and
one that sorts the whole vocabulary, with which it has to agree to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellmd.backends import create, installed
from cellmd.backends.ops import Ops
from cellmd.errors import ArgumentError, BackendError
from cellmd.runtime.logits import Logits
from cellmd.runtime.sampler import Sampler, Sampling, candidates

VOCAB = 24
REFERENCE = create("reference")
vectors = st.lists(st.floats(-30, 30, width=32), min_size=VOCAB, max_size=VOCAB)
options = st.builds(
    Sampling,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 5),
)


def logits_of(row: object, ops: Ops = REFERENCE) -> Logits:
    return Logits.of(ops, ops.floats(np.array(row, np.float32)[None]))[0]


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
    ids, probabilities = candidates(logits_of(logits), options)
    got = dict(zip(ids.tolist(), probabilities, strict=True))
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
    row = logits_of(logits)
    drawn = [[sampler.choose(row) for _ in range(8)] for sampler in (Sampler(options), Sampler(options))]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) <= set(candidates(row, options)[0].tolist())


@settings(deadline=None)
@given(vectors)
def test_greedy_takes_the_first_of_the_likeliest(logits: list[float]) -> None:
    row = np.array(logits, np.float32)
    assert Sampler(Sampling(temperature=0)).choose(logits_of(row)) == int(row.argmax())


def test_draws_follow_the_probabilities() -> None:
    """20,000 draws of four tokens: each count within five standard deviations."""
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    sampler, n = Sampler(Sampling(seed=1)), 20_000
    row = logits_of(np.log(probabilities))
    counts = np.bincount([sampler.choose(row) for _ in range(n)], minlength=4)
    deviation = np.sqrt(n * probabilities * (1 - probabilities))
    assert (np.abs(counts - n * probabilities) < 5 * deviation).all()


def test_without_a_seed_answers_differ() -> None:
    row = logits_of(np.zeros(1000))
    draws = {tuple(Sampler(Sampling()).choose(row) for _ in range(4)) for _ in range(3)}
    assert len(draws) == 3


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"temperature": 5e-324}, {"temperature": 1e-300, "min_p": 0.1}])
def test_at_its_limit_sampling_takes_the_likeliest(options: dict[str, float]) -> None:
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 0, **options}))
    row = [30.0, -30.0, 30.5] + [0.0] * (VOCAB - 3)
    assert [sampler.choose(logits_of(row)) for _ in range(5)] == [2] * 5


def test_repetition_penalty_covers_prompt_and_answer() -> None:
    row = logits_of([2.0, 1.5, -1.0, -1.2])
    before = row.all().copy()
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), seen=[0])
    assert [sampler.choose(row) for _ in range(3)] == [1, 0, 0]  # 2 -> 1; then 1.5 -> 0.75; nothing lower than 1 wins
    assert np.array_equal(row.all(), before)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), seen=[2])
    assert sampler._penalised(row).all().tolist() == [2.0, 1.5, -1.5, np.float32(-1.2)]


@given(
    vectors,
    st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_biases_and_penalties_are_added_to_logits(
    logits: list[float], bias: dict[int, float], presence: float, frequency: float
) -> None:
    sampling = Sampling(temperature=0.0, logit_bias=bias, presence_penalty=presence, frequency_penalty=frequency)
    sampler = Sampler(sampling, seen=range(VOCAB))  # the prompt's tokens do not count
    chosen: list[int] = []
    for _ in range(5):
        token = sampler.choose(logits_of(logits))
        values = [
            np.float32(x)
            + np.float32(bias.get(i, 0.0))
            - (np.float32(presence + frequency * chosen.count(i)) if i in chosen else 0)
            for i, x in enumerate(logits)
        ]
        assert values[token] == max(values)
        chosen.append(token)


def test_seed_of_known_draws() -> None:
    """These ids must never change: the same seed is the same text in every release."""
    row = logits_of(np.linspace(0, 3, 50))
    sampler = Sampler(Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=1234))
    assert [sampler.choose(row) for _ in range(8)] == KNOWN_DRAWS


KNOWN_DRAWS = [21, 44, 26, 46, 45, 48, 46, 45]


@settings(deadline=None)
@given(vectors, st.integers(0, VOCAB - 1))
def test_logprob(logits: list[float], token: int) -> None:
    row = np.array(logits, np.float32).astype(np.float64)
    want = float(row[token] - row.max() - np.log(math.fsum(np.exp(row - row.max()))))
    got = logits_of(logits).logprob(token)
    assert got <= 0
    # The denominator is a float32 of at most log(VOCAB), of terms whose arguments are float32 of at most 60.
    assert math.isclose(got, want, rel_tol=0, abs_tol=60 * float(np.finfo(np.float32).eps))


@settings(deadline=None)
@given(vectors, st.integers(0, VOCAB + 3))
def test_top_logprobs(logits: list[float], n: int) -> None:
    row = logits_of(logits)
    got = row.top_logprobs(n)
    assert [token for token, _ in got] == sorted(range(VOCAB), key=lambda i: (-np.float32(logits[i]), i))[:n]
    assert all(value == row.logprob(token) for token, value in got)


class WholeRow:
    """The sampler as it would be with all logits on the host: everything is penalised, divided and sorted."""

    def __init__(self, options: Sampling, seen: set[int]) -> None:
        self.options, self.seen = options, set(seen)
        self.random = np.random.Generator(np.random.PCG64(options.seed))

    def choose(self, logits: np.ndarray) -> int:
        options, row = self.options, logits.copy()
        if options.repetition_penalty != 1.0:
            ids, penalty = np.array(sorted(self.seen), dtype=np.int64), np.float32(options.repetition_penalty)
            row[ids] = np.where(row[ids] > 0, row[ids] / penalty, row[ids] * penalty)
        token = (
            int(np.argmax(row)) if options.temperature == 0 else self.draw(row.astype(np.float64) / options.temperature)
        )
        self.seen.add(token)
        return token

    def draw(self, scores: np.ndarray) -> int:
        options, ids = self.options, np.flatnonzero(scores > -np.inf)
        if 0 < options.top_k < len(ids):
            ids = ids[scores[ids] >= np.sort(scores[ids])[-options.top_k]]
        ids = ids[np.lexsort((ids, -scores[ids]))]
        probabilities = np.exp(scores[ids] - scores[ids[0]])
        if 0 < options.top_k < len(scores):
            probabilities /= probabilities.sum()
        else:  # the sum of all goes by token id
            probabilities /= np.exp(scores - scores.max()).sum()
        keep = len(ids)
        if options.top_p < 1.0:
            keep = min(keep, int(np.searchsorted(np.cumsum(probabilities), options.top_p)) + 1)
        if options.min_p > 0.0:
            keep = min(keep, int(np.count_nonzero(probabilities >= options.min_p * probabilities[0])))
        ids, probabilities = ids[:keep], probabilities[:keep]
        drawn = self.random.random()
        if options.top_k or options.top_p < 1.0 or options.min_p > 0.0:
            drawn *= probabilities.sum()
        return int(ids[min(int(np.searchsorted(np.cumsum(probabilities), drawn, side="right")), keep - 1)])


@st.composite
def rows_of_logits(draw: st.DrawFn) -> np.ndarray:
    """Rows (4, V) of few or many values: many ties, forbidden tokens, more and fewer columns than are looked at."""
    n = draw(st.sampled_from([3, 24, 64, 65, 66, 200, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.standard_normal((4, n), dtype=np.float32) * np.float32(draw(st.sampled_from([0.0, 0.1, 3.0, 20.0])))
    step = draw(st.sampled_from([0.0, 0.5, 4.0]))
    rows = np.round(rows / np.float32(step)) * np.float32(step) if step else rows
    forbidden = rng.random((4, n)) < draw(st.sampled_from([0.0, 0.5, 0.99]))
    forbidden[np.arange(4), rng.integers(0, n, 4)] = False
    rows[forbidden] = -np.inf
    return rows


@pytest.mark.parametrize("name", installed())
@settings(max_examples=150, deadline=None)
@given(
    rows=rows_of_logits(),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 64, 65, 100, 999]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    seed=st.integers(0, 3),
)
def test_the_same_tokens_as_of_the_whole_row(
    name: str,
    rows: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    seed: int,
) -> None:
    options = Sampling(temperature, top_k, top_p, min_p, penalty, seed)
    ops, seen = create(name), {0, 2}
    want, got = WholeRow(options, seen), Sampler(options, seen)
    together = Logits.of(ops, ops.floats(rows))
    assert [got.choose(row) for row in together] == [want.choose(row) for row in rows]


def test_every_choice_takes_one_number_whether_foreseen_or_not() -> None:
    options, rng = Sampling(top_k=40, top_p=0.95, seed=9), np.random.default_rng(0)
    rows = rng.standard_normal((200, 100), dtype=np.float32)
    want, got = WholeRow(options, set()), Sampler(options)
    chosen = []
    for i, row in enumerate(Logits.of(REFERENCE, REFERENCE.floats(rows))):
        foreseen = got.foreseen() if i % 3 else None
        assert foreseen is None or got.foreseen() == foreseen
        chosen.append(got.choose(row))
    assert chosen == [want.choose(row) for row in rows]


@pytest.mark.parametrize("row", [[math.nan] * 3, [-math.inf] * 3, [math.inf, 0.0, 0.0]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_finite_largest_are_an_error(row: list[float], temperature: float) -> None:
    with pytest.raises(BackendError, match="largest logit is"):
        Sampler(Sampling(temperature=temperature)).choose(logits_of(row))


def test_what_is_not_a_number_is_never_chosen() -> None:
    row = logits_of([math.nan, -3.0, math.nan, -3.0])
    assert Sampler(Sampling(temperature=0)).choose(row) == 1
    sampler = Sampler(Sampling(seed=1))
    assert {sampler.choose(row) for _ in range(50)} == {1, 3}


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
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-60),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be .*, found {value!r}"):
        Sampling(**{name: value})
