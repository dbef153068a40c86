"""Hypothesis strategies for tensors and codings."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from cellmd.quant import Coding
from cellmd.quant.schemes import GROUP_SIZES, SCALE_DTYPES


def shapes(max_rows: int = 40, max_columns: int = 300) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, max_rows), st.integers(1, max_columns))


def codings(dtypes: tuple[str, ...] = ("i4", "i8")) -> st.SearchStrategy[Coding]:
    return st.builds(
        Coding,
        dtype=st.sampled_from(dtypes),
        layout=st.sampled_from(["row", "tile16"]),
        group_size=st.sampled_from(GROUP_SIZES),
        scale_dtype=st.sampled_from(SCALE_DTYPES),
    )


@st.composite
def matrices(draw: st.DrawFn, max_rows: int = 40, max_columns: int = 300) -> np.ndarray:
    """float32 (N, K): normal or heavy-tailed, of any usual magnitude, some rows and columns zero."""
    shape = draw(shapes(max_rows, max_columns))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.standard_normal(shape) if draw(st.booleans()) else rng.standard_t(2, shape)
    weights *= 10.0 ** draw(st.floats(-4, 2))
    weights *= np.exp(rng.standard_normal((shape[0], 1)))  # rows differ in size, as they do in models
    if draw(st.booleans()):
        weights[rng.integers(shape[0])] = 0
        weights[:, rng.integers(shape[1])] = 0
    return weights.astype(np.float32)
