"""Logits of two models on the same tokens, compared.

With p the distribution of the model that is the yardstick and q that of the other, at each position
    divergence   KL(p || q) = sum p (log p - log q), in nats
    agreement    whether the likeliest token is the same
    perplexity   exp(mean of -log q(next token)), and the same of p
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellmd.calibration.divergence import by_rows, divergence, log_softmax

_RESAMPLES = 1000
_CONFIDENCE = 0.95
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class PieceScores:
    """By position of one piece. surprise, surprise_against: -log probability of the token that follows, where there is
    one, in the model and in the yardstick."""

    divergence: np.ndarray
    agreement: np.ndarray
    surprise: np.ndarray
    surprise_against: np.ndarray


def compare_logits(logits: np.ndarray, log_p: np.ndarray, following: Sequence[int], pool: Executor) -> PieceScores:
    """logits: float32 (N, V). log_p: the yardstick's log probabilities, likewise. following: the token after each
    position, N of them or fewer. Positions are shared out over the pool; what is found of one depends on it alone."""
    divergences, agreement = np.empty((2, len(logits)), np.float32)
    surprise, surprise_against = np.empty((2, len(following)), np.float32)

    def some(rows: slice, out: np.ndarray, spare: np.ndarray) -> None:
        log_q, targets = log_softmax(logits[rows], out, spare), list(following[rows])
        for found, logs in ((surprise, log_q), (surprise_against, log_p[rows])):
            found[rows] = -logs[np.arange(len(targets)), targets]
        agreement[rows] = log_q.argmax(axis=1) == log_p[rows].argmax(axis=1)
        divergences[rows] = divergence(log_p[rows], log_q, log_q, spare)

    by_rows(some, logits.shape, pool)
    return PieceScores(divergences, agreement, surprise, surprise_against)


@dataclass(frozen=True)
class Summary:
    """Scores of some pieces. Intervals: 95 %, from resampling pieces, whose positions are not independent."""

    n_positions: int
    n_pieces: int
    divergence: float
    divergence_interval: tuple[float, float]
    divergence_percentiles: dict[int, float]
    agreement: float
    agreement_interval: tuple[float, float]
    perplexity: float
    perplexity_against: float

    @classmethod
    def of(cls, pieces: Sequence[PieceScores]) -> Summary:
        """At least one piece, with at least one position that a token follows."""
        divergence = np.concatenate([piece.divergence for piece in pieces])
        surprise = np.concatenate([piece.surprise for piece in pieces])
        surprise_against = np.concatenate([piece.surprise_against for piece in pieces])
        percentiles = np.percentile(divergence, _PERCENTILES)
        return cls(
            n_positions=len(divergence),
            n_pieces=len(pieces),
            divergence=float(divergence.mean(dtype=np.float64)),
            divergence_interval=_interval([piece.divergence for piece in pieces]),
            divergence_percentiles={each: float(at) for each, at in zip(_PERCENTILES, percentiles, strict=True)},
            agreement=float(np.concatenate([piece.agreement for piece in pieces]).mean(dtype=np.float64)),
            agreement_interval=_interval([piece.agreement for piece in pieces]),
            perplexity=float(np.exp(surprise.mean(dtype=np.float64))),
            perplexity_against=float(np.exp(surprise_against.mean(dtype=np.float64))),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, to five figures."""
        return {
            "positions": self.n_positions,
            "pieces": self.n_pieces,
            "kl": {
                "mean": _figures(self.divergence),
                "interval": [_figures(bound) for bound in self.divergence_interval],
                **{f"p{each}": _figures(value) for each, value in self.divergence_percentiles.items()},
            },
            "top1": {
                "mean": _figures(self.agreement),
                "interval": [_figures(bound) for bound in self.agreement_interval],
            },
            "perplexity": _figures(self.perplexity),
            "perplexity_against": _figures(self.perplexity_against),
        }


def _interval(pieces: Sequence[np.ndarray]) -> tuple[float, float]:
    """Percentile bootstrap over pieces of the mean over all positions."""
    sums = np.array([piece.sum(dtype=np.float64) for piece in pieces])
    counts = np.array([len(piece) for piece in pieces])
    drawn = np.random.default_rng(0).integers(0, len(pieces), (_RESAMPLES, len(pieces)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [50 * (1 - _CONFIDENCE), 50 * (1 + _CONFIDENCE)])
    return float(low), float(high)


def _figures(value: float) -> float:
    return float(f"{value:.5g}")


def word_errors(heard: str, said: str) -> tuple[int, int]:
    """Insertions, deletions and substitutions that make `said` of `heard`, and the words of `said`. Case and
    punctuation do not count."""
    ours, theirs = _words(heard), _words(said)
    previous = list(range(len(theirs) + 1))
    for i, word in enumerate(ours, 1):
        current = [i]
        for j, other in enumerate(theirs, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (word != other)))
        previous = current
    return previous[-1], len(theirs)


def _words(text: str) -> list[str]:
    kept = "".join(letter if letter.isalnum() or letter in " '\n\t" else " " for letter in text.casefold())
    return kept.split()
