"""Rounding with error feedback (GPTQ): codes chosen for what a matrix computes, not for the weights themselves.

For inputs x the error of a row w stored as q is (w - q) H (w - q)^T with H = E[x^T x]. With H = R R^T, R upper
triangular, this is the squared length of (w - q) R, whose component j depends on columns 0 .. j alone. So columns are
rounded one after another, and each makes up for the errors e of those before it:

    q_j = round(w_j + sum_{i<j} e_i R_ij / R_jj),   e = w - q

Columns with large inputs go first, while there are many left to make up for them. Where the inputs of the stored model
are not those of the source (everything upstream is rounded too), the weights are first moved to answer the inputs that
there will be: with d = x_source - x, the least squares of w x_source by w' x gives w' = w + w E[d^T x] H^-1. A part of
that is taken: all of it would fit the calibration text more than the model.

Sources: Frantar et al., GPTQ (2022); Li et al., GPTAQ (2025), for the second part.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from cellmd.errors import CheckpointError
from cellmd.quant.floats import STORED
from cellmd.quant.layouts import pack, pack_per_group
from cellmd.quant.scales import decode_scales, encode_scales
from cellmd.quant.schemes import QUANTISERS, groups_of, sizes
from cellmd.quant.tensor import Coding, PackedTensor
from cellmd.quant.triangular import factorise, solve

DAMPING = 0.1
"""Added to the diagonal of H, as a part of its mean. Measured: `docs/quantisation.md`."""

DRIFT_SHARE = 0.5
"""How much of the move towards the inputs of the stored model is made. Measured likewise."""

_MOST_ROWS_KEPT = 4096
_STRIPE_COLUMNS = 512
_BLOCK_COLUMNS = 64
_CHUNK_ROWS = 768
_CHUNK_WEIGHTS = 1 << 16
"""Weights whose scales are searched at once: they and their copies stay in a core's cache."""

_SHRINKS = np.linspace(1.06, 0.55, 18, dtype=np.float32)


class InputMoments:
    """Second moments of the inputs of a matrix of K columns, summed over calibration rows.

    pull: (M, K), what the matrix should make up for, None where nothing is: the sum of (x_source - x)^T x, M = K; or,
    for a matrix with N < K rows, that times the matrix, which is less: the sum of (y_source - y)^T x with y the outputs
    of the source's matrix, M = N.
    """

    def __init__(self, n_columns: int, pool: Executor) -> None:
        """pool: shares out the sums."""
        self.pull: np.ndarray | None = None
        self._pool = pool
        self._gram = np.zeros((n_columns, n_columns), np.float32)
        self._rows = np.empty((min(n_columns, _MOST_ROWS_KEPT), n_columns), np.float32)
        self._differences = np.empty((len(self._rows), 0), np.float32)
        self._n_kept = 0

    def add(self, rows: np.ndarray, differences: np.ndarray | None = None) -> None:
        """Rows of inputs float32 (R, K), and what the source has more of inputs (R, K) or of outputs (R, N)."""
        if differences is not None and self.pull is None:
            width = differences.shape[1]
            self.pull = np.zeros((width, rows.shape[1]), np.float32)
            self._differences = np.empty((len(self._rows), width), np.float32)
        while len(rows):
            place = slice(self._n_kept, min(self._n_kept + len(rows), len(self._rows)))
            n = place.stop - place.start
            self._rows[place] = rows[:n]
            if differences is not None:
                self._differences[place], differences = differences[:n], differences[n:]
            rows, self._n_kept = rows[n:], place.stop
            if self._n_kept == len(self._rows):
                self._sum_up()

    def gram(self) -> np.ndarray:
        """The sum of x^T x, float32 (K, K)."""
        self._sum_up()
        for start in range(0, len(self._gram), _STRIPE_COLUMNS):
            stop = start + _STRIPE_COLUMNS
            self._gram[start:stop, stop:] = self._gram[stop:, start:stop].T
        return self._gram

    def _sum_up(self) -> None:
        """Products of many rows at once, a stripe of columns each; of the moments one half, for the other is alike."""
        rows, differences = self._rows[: self._n_kept], self._differences[: self._n_kept]

        def add(start: int) -> None:
            stripe = slice(start, start + _STRIPE_COLUMNS)
            self._gram[start:, stripe] += rows[:, start:].T @ rows[:, stripe]
            if self.pull is not None:
                self.pull[:, stripe] += differences.T @ rows[:, stripe]

        list(self._pool.map(add, range(0, len(self._gram), _STRIPE_COLUMNS)))
        self._n_kept = 0


@dataclass(frozen=True)
class Feedback:
    """What rounding needs of the moments of one input, for all matrices that it is multiplied with.

    order: of the columns, the last to be rounded first. lower: float32 (K, K), its lower triangle the Cholesky factor
    L of H in that order: R is L with rows and columns turned round. importance: diagonal of H over its mean. pull: of
    `InputMoments`.
    """

    order: np.ndarray
    lower: np.ndarray
    importance: np.ndarray
    pull: np.ndarray | None

    @classmethod
    def of(cls, moments: InputMoments, damping: float = DAMPING) -> Feedback:
        gram = moments.gram()
        energy = gram.diagonal().astype(np.float64)
        energy += damping * (energy.mean() or 1.0)  # keeps the condition within float32's reach, too
        order = np.argsort(-energy, kind="stable")[::-1]
        lower = gram[np.ix_(order, order)]
        lower[np.diag_indices_from(lower)] = energy[order]
        factorise(lower)
        return cls(order, lower, (energy / energy.mean()).astype(np.float32), moments.pull)

    def moved(self, weights: np.ndarray, share: float, pool: Executor) -> np.ndarray:
        """weights + share * weights E[d^T x] H^-1, float32 (N, K)."""
        if self.pull is None:
            return weights
        right = np.ascontiguousarray(self.pull.T[self.order])
        starts = range(0, right.shape[1], _STRIPE_COLUMNS)
        list(pool.map(lambda start: solve(self.lower, right[:, start : start + _STRIPE_COLUMNS]), starts))
        move = np.empty_like(self.pull)
        move[:, self.order] = right.T
        moved: np.ndarray = weights + np.float32(share) * (weights @ move if len(move) == len(self.order) else move)
        return moved


def encode_with_feedback(
    name: str,
    weights: np.ndarray,
    coding: Coding,
    feedback: Feedback,
    pool: Executor,
    *,
    drift_share: float = DRIFT_SHARE,
) -> PackedTensor:
    """A matrix as a stored tensor, its codes chosen for the inputs that `feedback` is of.

    weights: float32 (N, K), finite. coding: a quantised one. Rows are independent of each other; `pool` shares them
    out. Raises CheckpointError naming the tensor for weights that are not finite.
    """
    assert coding.scale_dtype is not None
    moved, expected = feedback.moved(weights, drift_share, pool), sizes(weights.shape, coding)
    data, scale_type = np.empty(expected.data, np.uint8), STORED[coding.scale_dtype]
    scales = np.empty(expected.scales // scale_type.itemsize, scale_type)
    row_factors = np.empty(expected.row_factors // 4, np.float32) if expected.row_factors else None

    def encode(start: int) -> None:
        """Some rows into their places, a multiple of 16 of them: codes of the whole would be the largest thing here."""
        rows = moved[start : start + _CHUNK_ROWS]
        if not np.isfinite(rows).all():
            raise CheckpointError(f"tensor {name!r} holds NaN or infinite values; the checkpoint is damaged")
        codes, stored, factors = _encode_rows(rows, coding, feedback)
        place = sizes((start, weights.shape[1]), coding)
        _put(data, place.data, pack(codes, coding.dtype, coding.layout))
        _put(scales, place.scales // scale_type.itemsize, pack_per_group(stored, coding.layout))
        if row_factors is not None and factors is not None:
            _put(row_factors, place.row_factors // 4, pack_per_group(factors[:, None], coding.layout))

    list(pool.map(encode, range(0, len(moved), _CHUNK_ROWS)))
    return PackedTensor(name, weights.shape, coding, data, scales, row_factors)


def _put(whole: np.ndarray, start: int, part: np.ndarray) -> None:
    whole[start : start + len(part)] = part


def _encode_rows(
    rows: np.ndarray, coding: Coding, feedback: Feedback
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes int8 (R, K), stored scales (R, G), row factors (R,) or None."""
    assert coding.scale_dtype is not None
    quantiser = QUANTISERS[coding.dtype]
    step = max(1, _CHUNK_WEIGHTS // rows.shape[1])
    parts = (rows[start : start + step] for start in range(0, len(rows), step))
    wanted = np.concatenate([_scales(part, coding, feedback.importance) for part in parts])
    stored, factors = encode_scales(wanted, coding.scale_dtype, must_reach=not quantiser.clips)
    scales = decode_scales(stored, coding.scale_dtype, factors)
    codes = _rounded(rows, scales, coding, feedback)
    return np.ascontiguousarray(codes.T), stored, factors


def _rounded(rows: np.ndarray, scales: np.ndarray, coding: Coding, feedback: Feedback) -> np.ndarray:
    """Codes int8 (K, R) of rows (R, K) with given scales (R, G)."""
    n_rows, n_columns = rows.shape
    group, quantiser = coding.group_size or n_columns, QUANTISERS[coding.dtype]
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    scale_of, inverse_of = np.ascontiguousarray(scales.T), np.ascontiguousarray(inverse.T)
    order, lower = feedback.order, feedback.lower
    columns = np.ascontiguousarray(rows.T[order])  # a column of weights is a row here: contiguous
    errors = np.empty_like(columns)
    codes = np.empty((n_columns, n_rows), np.int8)
    for stop in range(n_columns, 0, -_BLOCK_COLUMNS):
        start = max(stop - _BLOCK_COLUMNS, 0)
        diagonal = lower.diagonal()[start:stop, None]
        block = lower[stop:, start:stop].T @ errors[stop:]
        block /= diagonal
        block += columns[start:stop]
        within = np.ascontiguousarray(lower[start:stop, start:stop].T / diagonal)
        for j in range(stop - 1, start - 1, -1):
            wished = block[j - start]
            wished += within[j - start, j + 1 - start :] @ errors[j + 1 : stop]
            at = order[j] // group
            code = wished * inverse_of[at]
            np.rint(code, out=code)
            np.clip(code, quantiser.low, quantiser.high, out=code)
            codes[order[j]] = code
            code *= scale_of[at]
            np.subtract(columns[j], code, out=errors[j])
    return codes


def _scales(rows: np.ndarray, coding: Coding, importance: np.ndarray) -> np.ndarray:
    """Scales float32 (R, G) of least squared error weighted by the importance of columns; see `int4`."""
    n_rows, n_columns = rows.shape
    n_groups, group = groups_of(n_columns, coding), coding.group_size or n_columns
    padding = n_groups * group - n_columns
    weights = np.pad(rows, ((0, 0), (0, padding))).reshape(n_rows, n_groups, group)
    matter = np.pad(importance, (0, padding)).reshape(n_groups, group)
    least, most = weights.min(axis=-1), weights.max(axis=-1)
    quantiser = QUANTISERS[coding.dtype]
    if not quantiser.clips:
        return quantiser.choose_scales(weights, (least, most))
    widest = np.where(-least > most, least, most) / np.float32(quantiser.low)
    best_gain = np.full(widest.shape, -1, np.float32)
    scales: np.ndarray = np.zeros_like(widest)
    weighted = weights * matter
    codes = np.empty_like(weights)
    for shrink in _SHRINKS:
        candidate = widest * shrink
        inverse = np.divide(1, candidate, out=np.zeros_like(candidate), where=candidate != 0)
        np.multiply(weights, inverse[..., None], out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, quantiser.low, quantiser.high, out=codes)
        product = np.einsum("rgk,rgk->rg", weighted, codes)
        codes *= codes
        energy = np.einsum("rgk,gk->rg", codes, matter)
        quotient = np.divide(product, energy, out=np.zeros_like(product), where=energy > 0)
        gain = product * quotient
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(scales, quotient, where=better)
    return scales
