"""What is particular to the reference backend: how much it keeps decoded."""

from __future__ import annotations

import numpy as np
import pytest

from cellmd.backends.reference import weights
from cellmd.backends.reference.operations import ReferenceOps
from naive_ops import packed


@pytest.mark.parametrize("kept_bytes", [0, 100 * 64 * 4, 1 << 20])
def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((100, 64), np.float32), rng.standard_normal((3, 64), np.float32)
    monkeypatch.setattr(weights, "DECODED_BYTES", kept_bytes)
    monkeypatch.setattr(weights, "_BLOCK_BYTES", 32 * 64 * 4)
    ops = ReferenceOps()
    matrix = ops.matrix(packed(w))
    n_blocks = [len(list(matrix.blocks())) for _ in range(2)]
    assert n_blocks == ([1, 1] if kept_bytes else [4, 4])
    np.testing.assert_allclose(ops.linear(x, matrix), x @ w.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.linear(x, matrix.slice(16, 90)), (x @ w.T)[:, 16:90], rtol=1e-5, atol=1e-5)


def test_no_more_stays_decoded_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "DECODED_BYTES", 3 * 16 * 8 * 4)
    ops = ReferenceOps()
    matrices = [ops.matrix(packed(np.ones((16, 8)))) for _ in range(5)]
    for _ in range(2):
        for matrix in matrices:
            ops.linear(np.ones((1, 8), np.float32), matrix)
    assert ops._budget.left == 0
