"""Logits where the backend has them: a token is chosen from the few likeliest, so a row of the whole vocabulary comes
to the host only for those who ask for it."""

from __future__ import annotations

import numpy as np

from cellmd.backends.ops import Ops, Tensor

AT_HAND = 65
"""Likeliest tokens that are looked up right away: those of the model's own sampling, and one to see that they end."""


class Logits:
    """The logits float32 (V,) after one token, valid until the backend's next pass."""

    def __init__(self, rows: _Rows, index: int) -> None:
        self._rows = rows
        self._index = index

    @classmethod
    def of(cls, ops: Ops, rows: Tensor, best: tuple[np.ndarray, np.ndarray] | None = None) -> list[Logits]:
        """One for each of the rows (R, V); what is asked of one is computed for all of them together. best: what
        `Ops.top_k` gives of them, where it is on the host already."""
        shared = _Rows(ops, rows, best)
        return [cls(shared, i) for i in range(shared.n_rows)]

    def __len__(self) -> int:
        return self._rows.n_columns

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k <= V likeliest tokens, of equals the lower id first: logits float32 (k,) and ids int32 (k,)."""
        values, ids = self._rows.best(k)
        return values[self._index, :k], ids[self._index, :k]

    def all(self) -> np.ndarray:
        """float32 (V,) on the host."""
        return self._rows.on_host(self._index)

    def changed(self, values: np.ndarray) -> Logits:
        """Other logits float32 (V,) on the same backend."""
        ops = self._rows.ops
        return Logits(_Rows(ops, ops.floats(values[None])), 0)

    def logprob(self, token: int) -> float:
        """Natural logarithm of the token's probability: float32 rounding of the logits, never above 0."""
        values, ids = self._rows.best(1)
        known = np.flatnonzero(ids[self._index] == token)
        value = values[self._index, known[0]] if len(known) else self.all()[token]
        return self._logprob(float(value))

    def top_logprobs(self, n: int) -> tuple[tuple[int, float], ...]:
        """The n likeliest tokens (V at most) with their natural log probabilities, likeliest first."""
        if n == 0:
            return ()
        values, ids = self.best(min(n, len(self)))
        return tuple((token, self._logprob(value)) for token, value in zip(ids.tolist(), values.tolist(), strict=True))

    def _logprob(self, value: float) -> float:
        largest = float(self.best(1)[0][0])
        return value - largest - float(self._rows.log_sum_exp()[self._index])


class _Rows:
    """Logits (R, V) of one pass, and what was found out about them."""

    def __init__(self, ops: Ops, rows: Tensor, best: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.ops = ops
        self.n_rows: int = rows.shape[0]
        self.n_columns: int = rows.shape[1]
        self._rows = rows
        self._log_sum_exp: np.ndarray | None = None
        self._on_host: dict[int, np.ndarray] = {}
        self._best = self._look_up(AT_HAND) if best is None else best

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > self._best[0].shape[1]:
            self._best = self._look_up(k)
        return self._best

    def log_sum_exp(self) -> np.ndarray:
        if self._log_sum_exp is None:
            self._log_sum_exp = self.ops.to_numpy(self.ops.log_sum_exp(self._rows))
        return self._log_sum_exp

    def on_host(self, index: int) -> np.ndarray:
        if index not in self._on_host:
            row = self._rows if self.n_rows == 1 else self.ops.take_rows(self._rows, self.ops.ints([index]))
            self._on_host[index] = self.ops.to_numpy(row)[0]
        return self._on_host[index]

    def _look_up(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        values, ids = self.ops.top_k(self._rows, min(k, self.n_columns))
        return self.ops.to_numpy(values), self.ops.to_numpy(ids)
