"""From logits to the next token.

In this order, as transformers' generation does: repetition penalty over the tokens so far, then what OpenAI's interface
adds to logits (a bias for single tokens, a penalty for each time and one for any time a token was chosen), temperature,
then of the tokens that remain only the top_k likeliest, of those the likeliest that together reach top_p, of those the
ones at least min_p times as likely as the likeliest. Then one draw from what is left. The same logits, options and seed
give the same tokens on every machine: probabilities are float64, the generator is NumPy's PCG64, one number is drawn a
token.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import neg
from typing import Any, NamedTuple

import numpy as np

from cellmd.errors import ArgumentError, BackendError
from cellmd.runtime.logits import AT_HAND, Logits

_FIRST_LOOK = 256
"""Likeliest tokens that are looked at first where top_k names no number."""

_DRAWN_AT_ONCE = 64
"""Numbers that are drawn in one call: the same as one after the other."""

Probabilities = list[float] | np.ndarray
"""Plain numbers where they are few, float64 where they may be the whole vocabulary's."""


@dataclass(frozen=True)
class Sampling:
    """How to choose. temperature 0 always takes the likeliest token.

    top_k 0, top_p 1, min_p 0, repetition_penalty 1, presence_penalty 0, frequency_penalty 0 and an empty logit_bias
    change nothing. presence_penalty, frequency_penalty: taken from the logit of a token that was chosen before, once,
    and for each time. logit_bias: added to the logits of these tokens. seed None draws a new one.
    Raises ArgumentError for a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def cuts(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, float, lambda t: 0 <= t < math.inf, "a number, 0 or more")
        _require("top_k", self.top_k, int, lambda k: k >= 0, "a whole number, 0 or more")
        _require("top_p", self.top_p, float, lambda p: 0 <= p <= 1, "a number from 0 to 1")
        _require("min_p", self.min_p, float, lambda p: 0 <= p <= 1, "a number from 0 to 1")
        _require("repetition_penalty", self.repetition_penalty, float, lambda r: 0.01 <= r <= 100, "0.01 to 100")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(name, getattr(self, name), float, lambda penalty: -2 <= penalty <= 2, "a number from -2 to 2")
        for token, bias in self.logit_bias.items():
            _require("a token of logit_bias", token, int, lambda token: token >= 0, "a token id")
            _require("a bias of logit_bias", bias, float, lambda bias: -100 <= bias <= 100, "a number from -100 to 100")
        if self.seed is not None:
            _require("seed", self.seed, int, lambda seed: seed >= 0, "a whole number, 0 or more")


class Draw(NamedTuple):
    """How one token will be chosen, as `Ops.guess` takes it. number: from 0 to 1, drawn."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    number: float


LIKELIEST = Draw(1.0, 1, 1.0, 0.0, 0.0)


class Sampler:
    """Chooses the tokens of one sequence. `seen` are the tokens before the first choice (the prompt's)."""

    def __init__(self, options: Sampling, seen: Iterable[int] = ()) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))
        self._drawn: deque[float] = deque()  # numbers for the next choices
        self._seen = set(seen) if options.repetition_penalty != 1.0 else set()
        self._times: Counter[int] = Counter()  # each token was chosen

    def choose(self, logits: Logits) -> int:
        """The next token id. Raises BackendError for logits without a finite largest, which no working model gives."""
        options = self._options
        logits = self._penalised(logits)
        if options.temperature == 0.0:
            token = int(_likeliest(logits, 1)[1][0])
        else:
            drawn = self._numbers(1).popleft()
            ids, probabilities = candidates(logits, options, reach=drawn)
            sums = _sums(probabilities)
            if options.cuts:
                drawn *= sums[-1]
            token = int(ids[bisect_right(sums, drawn, 0, len(ids) - 1)])
        if options.repetition_penalty != 1.0:
            self._seen.add(token)
        if options.presence_penalty or options.frequency_penalty:
            self._times[token] += 1
        return token

    def foreseen(self) -> tuple[Draw, Draw] | None:
        """How the next two tokens will be chosen; None if that depends on more than the few largest logits."""
        options = self._options
        penalties = options.presence_penalty, options.frequency_penalty
        if options.logit_bias or any(penalties) or options.repetition_penalty != 1.0:
            return None
        if options.temperature == 0.0:
            return LIKELIEST, LIKELIEST
        if not 1 <= options.top_k < AT_HAND:
            return None
        numbers = self._numbers(2)
        first, second = (
            Draw(options.temperature, options.top_k, options.top_p, options.min_p, numbers[i]) for i in range(2)
        )
        return first, second

    def _numbers(self, n: int) -> deque[float]:
        """What is drawn for the next choices, n at least."""
        if len(self._drawn) < n:
            self._drawn.extend(self._random.random(_DRAWN_AT_ONCE).tolist())
        return self._drawn

    def _penalised(self, logits: Logits) -> Logits:
        options = self._options
        if not (self._seen or self._times or options.logit_bias):
            return logits
        values = logits.all().copy()
        ids = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
        penalty = np.float32(options.repetition_penalty)
        values[ids] = np.where(values[ids] > 0, values[ids] / penalty, values[ids] * penalty)
        for token, bias in options.logit_bias.items():
            values[token] += np.float32(bias)
        for token, times in self._times.items():
            values[token] -= np.float32(options.presence_penalty + options.frequency_penalty * times)
        return logits.changed(values)


def candidates(logits: Logits, options: Sampling, reach: float = math.inf) -> tuple[np.ndarray, Probabilities]:
    """The tokens that may be drawn, likeliest first (of equals the lower id), and their probabilities among the tokens
    that top_k left, not summing to 1 once top_p or min_p has cut. top_k leaves all equals of the last that it leaves; a
    logit of -inf makes no candidate. reach: where nothing cuts, the likeliest that together exceed it are enough.
    Raises BackendError as `Sampler.choose` does."""
    if 0 < options.top_k < len(logits):
        ids, probabilities = _of_top_k(logits, options)
    else:
        ids, probabilities = _of_all(logits, options, reach)
    keep = len(ids)
    if options.top_p < 1.0:
        keep = min(keep, bisect_left(_sums(probabilities), options.top_p) + 1)
    if options.min_p > 0.0:
        least = options.min_p * probabilities[0]
        keep = min(keep, bisect_right(probabilities, -least, key=neg))
    return ids[:keep], probabilities[:keep]


def _of_top_k(logits: Logits, options: Sampling) -> tuple[np.ndarray, Probabilities]:
    """The tokens that top_k leaves, and their probabilities among each other. Plain numbers: right after a step
    of the model, though not in a loop of choices alone, so few are gone through faster so than by calls of NumPy."""
    n, k = len(logits), options.top_k
    looked_at = k + 1
    values, ids = _likeliest(logits, looked_at)
    while looked_at < n and values[-1] == values[k - 1] > -np.inf:
        looked_at = min(2 * looked_at, n)
        values, ids = _likeliest(logits, looked_at)
    left: list[float] = [value for value in values.tolist() if value > -math.inf]
    largest, least = left[0], left[min(k, len(left)) - 1]
    relative = [math.exp((value - largest) / options.temperature) for value in left if value >= least]
    total = math.fsum(relative)
    return ids[: len(relative)], [likelihood / total for likelihood in relative]


def _of_all(logits: Logits, options: Sampling, reach: float) -> tuple[np.ndarray, Probabilities]:
    """As many of the likeliest of all tokens as top_p, min_p or `reach` can need, and their probabilities among all:
    the sum of these goes by token id, so that no more than those few are put in order."""
    n, looked_at = len(logits), 0
    largest = _likeliest(logits, 1)[0][0]
    total = np.nansum(_relative(logits.all(), largest, options))
    wanted = reach if not options.cuts else options.top_p if options.top_p < 1.0 else math.inf
    while True:
        looked_at = min(max(_FIRST_LOOK, 16 * looked_at), n)
        values, ids = _likeliest(logits, looked_at)
        left = int(np.count_nonzero(values > -np.inf))
        probabilities = _relative(values[:left], largest, options) / total
        enough = np.cumsum(probabilities)[-1] > wanted or probabilities[-1] < options.min_p * probabilities[0]
        if enough or left < looked_at or looked_at == n:
            return ids[:left], probabilities


def _sums(numbers: Probabilities) -> Probabilities:
    """Of the first number, of the first two, and so on."""
    return numbers.cumsum() if isinstance(numbers, np.ndarray) else list(accumulate(numbers))


def _relative(values: np.ndarray, largest: np.float32, options: Sampling) -> np.ndarray:
    """float64 likelihoods of logits beside that of the largest."""
    with np.errstate(over="ignore"):  # a difference beyond any float is a likelihood of 0
        relative: np.ndarray = np.exp((values.astype(np.float64) - np.float64(largest)) / options.temperature)
    return relative


def _likeliest(logits: Logits, k: int) -> tuple[np.ndarray, np.ndarray]:
    values, ids = logits.best(k)
    if not math.isfinite(values[0]):
        raise BackendError(f"the model's largest logit is {values[0]}; its weights or its input are damaged")
    return values, ids


def _require(name: str, value: object, kind: type, holds: Callable[[Any], bool], what: str) -> None:
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not number or not holds(value):
        raise ArgumentError(f"{name} must be {what}, found {value!r}")
