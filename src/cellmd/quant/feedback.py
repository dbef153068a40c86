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
from functools import partial

import numpy as np

from cellmd.errors import CheckpointError
from cellmd.quant.layouts import pack, pack_per_group
from cellmd.quant.scales import decode_scales, encode_scales
from cellmd.quant.schemes import QUANTISERS, groups_of
from cellmd.quant.tensor import Coding, PackedTensor

DAMPING = 0.1
"""Added to the diagonal of H, as a part of its mean. Measured: `docs/quantisation.md`."""

DRIFT_SHARE = 0.5
"""How much of the move towards the inputs of the stored model is made. Measured likewise."""

_EXACT_COLUMNS = 4096
"""Wider moments are kept in float32: at 12,288 columns each of several copies takes 1.2 GB in float64."""

_BLOCK_COLUMNS = 128
_CHUNK_ROWS = 4096
_SHRINKS = np.linspace(1.06, 0.55, 18, dtype=np.float32)


class InputMoments:
    """Second moments of the inputs of a matrix of K columns, summed over calibration rows.

    gram: (K, K), sum of x^T x over the inputs in the stored model. drift: the same of (x_source - x)^T x, None where
    there are no other inputs in the source.
    """

    def __init__(self, n_columns: int) -> None:
        dtype = np.float64 if n_columns <= _EXACT_COLUMNS else np.float32
        self.gram = np.zeros((n_columns, n_columns), dtype)
        self.drift: np.ndarray | None = None

    def add(self, stored: np.ndarray, source: np.ndarray | None = None) -> None:
        """Rows of inputs float32 (N, K), in the stored model and, if they differ, in the source."""
        self.gram += stored.T @ stored
        if source is not None:
            if self.drift is None:
                self.drift = np.zeros_like(self.gram)
            self.drift += (source - stored).T @ stored


@dataclass(frozen=True)
class _Feedback:
    """What rounding needs of the moments. order: of the columns. factor: float32 (K, K), R_ij / R_jj in that order, a
    row a j. importance: diagonal of H."""

    order: np.ndarray
    factor: np.ndarray
    importance: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray) -> _Feedback:
        """From damped second moments (K, K)."""
        order = np.argsort(-gram.diagonal(), kind="stable")
        # R R^T with R upper triangular: the Cholesky factor of the matrix turned by half a turn, turned back.
        upper = np.linalg.cholesky(gram[np.ix_(order[::-1], order[::-1])])[::-1, ::-1]
        factor = np.ascontiguousarray((upper / upper.diagonal()).T, dtype=np.float32)
        importance = (gram.diagonal() / gram.diagonal().mean()).astype(np.float32)
        return cls(order, factor, importance)


def _damped(gram: np.ndarray, damping: float) -> np.ndarray:
    gram = gram.copy()
    mean = float(np.trace(gram)) / len(gram) or 1.0
    gram[np.diag_indices_from(gram)] += damping * mean  # also keeps the condition within float32's reach
    return gram


def _moved(weights: np.ndarray, gram: np.ndarray, drift: np.ndarray, share: float) -> np.ndarray:
    """weights + share * weights E[d^T x] H^-1, float32 (N, K). Solved for the fewer of N and K right-hand sides: at
    12,288 columns that is a quarter of the work, and copies of N x K instead of K x K."""
    if len(weights) < len(gram):
        move = np.linalg.solve(gram, (weights.astype(gram.dtype, copy=False) @ drift).T).T
        moved: np.ndarray = weights + np.float32(share) * move.astype(np.float32)
        return moved
    by_column = np.linalg.solve(gram, drift.T).T.astype(np.float32)
    by_column *= np.float32(share)
    moved = weights @ by_column
    moved += weights
    return moved


def encode_with_feedback(
    name: str,
    weights: np.ndarray,
    coding: Coding,
    moments: InputMoments,
    pool: Executor,
    *,
    damping: float = DAMPING,
    drift_share: float = DRIFT_SHARE,
) -> PackedTensor:
    """A matrix as a stored tensor, its codes chosen for the inputs that `moments` describe.

    weights: float32 (N, K), finite. coding: a quantised one. Rows are independent of each other; `pool` shares them
    out. Raises CheckpointError naming the tensor for weights that are not finite.
    """
    if not np.isfinite(weights).all():
        raise CheckpointError(f"tensor {name!r} holds NaN or infinite values; the checkpoint is damaged")
    gram = _damped(moments.gram, damping)
    if moments.drift is not None:
        weights = _moved(weights, gram, moments.drift, drift_share)
    feedback = _Feedback.of(gram)
    del gram
    starts = range(0, len(weights), _CHUNK_ROWS)
    chunks = pool.map(
        partial(_encode_rows, coding=coding, feedback=feedback), (weights[i : i + _CHUNK_ROWS] for i in starts)
    )
    codes, scales, factors = zip(*chunks, strict=True)
    row_factors = None
    if coding.scale_dtype == "i8":
        row_factors = pack_per_group(np.concatenate(factors)[:, None], coding.layout)
    return PackedTensor(
        name,
        weights.shape,
        coding,
        pack(np.concatenate(codes), coding.dtype, coding.layout),
        pack_per_group(np.concatenate(scales), coding.layout),
        row_factors,
    )


def _encode_rows(
    rows: np.ndarray, coding: Coding, feedback: _Feedback
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes int8 (R, K), stored scales (R, G), row factors (R,) or None."""
    assert coding.scale_dtype is not None
    n_rows, n_columns = rows.shape
    n_groups, group = groups_of(n_columns, coding), coding.group_size or n_columns
    quantiser = QUANTISERS[coding.dtype]
    wanted = _scales(rows, n_groups, group, feedback.importance, coding, quantiser.low, quantiser.high)
    stored, factors = encode_scales(wanted, coding.scale_dtype, must_reach=not quantiser.clips)
    scales = decode_scales(stored, coding.scale_dtype, factors)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)

    order, factor = feedback.order, feedback.factor
    columns = np.ascontiguousarray(rows.T[order])  # a column of weights is a row here: contiguous
    scale_of, inverse_of = np.ascontiguousarray(scales.T), np.ascontiguousarray(inverse.T)
    errors = np.empty_like(columns)
    codes = np.empty((n_columns, n_rows), np.int8)
    for start in range(0, n_columns, _BLOCK_COLUMNS):
        stop = min(start + _BLOCK_COLUMNS, n_columns)
        block = columns[start:stop] + factor[start:stop, :start] @ errors[:start]
        for j in range(start, stop):
            wished = block[j - start]
            wished += factor[j, start:j] @ errors[start:j]
            at = order[j] // group
            code = wished * inverse_of[at]
            np.rint(code, out=code)
            np.clip(code, quantiser.low, quantiser.high, out=code)
            codes[order[j]] = code
            code *= scale_of[at]
            np.subtract(columns[j], code, out=errors[j])
    return np.ascontiguousarray(codes.T), stored, factors


def _scales(
    rows: np.ndarray, n_groups: int, group: int, importance: np.ndarray, coding: Coding, low: int, high: int
) -> np.ndarray:
    """Scales float32 (R, G) of least squared error weighted by the importance of columns; see `int4`."""
    n_rows, n_columns = rows.shape
    padding = n_groups * group - n_columns
    weights = np.pad(rows, ((0, 0), (0, padding))).reshape(n_rows, n_groups, group)
    matter = np.pad(importance, (0, padding)).reshape(n_groups, group)
    least, most = weights.min(axis=-1), weights.max(axis=-1)
    if not QUANTISERS[coding.dtype].clips:
        return QUANTISERS[coding.dtype].choose_scales(weights, (least, most))
    widest = np.where(-least > most, least, most) / np.float32(low)
    best_gain = np.full(widest.shape, -1, np.float32)
    scales: np.ndarray = np.zeros_like(widest)
    weighted = weights * matter
    for shrink in _SHRINKS:
        candidate = widest * shrink
        inverse = np.divide(1, candidate, out=np.zeros_like(candidate), where=candidate != 0)
        codes = np.clip(np.rint(weights * inverse[..., None]), low, high)
        product = np.einsum("rgk,rgk->rg", weighted, codes)
        codes *= codes
        energy = np.einsum("rgk,gk->rg", codes, matter)
        quotient = np.divide(product, energy, out=np.zeros_like(product), where=energy > 0)
        gain = product * quotient
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(scales, quotient, where=better)
    return scales
