"""How parts of sequences become packed rows."""

from __future__ import annotations

import numpy as np

from cellmd.backends import create
from cellmd.runtime.batch import Part, Sequence, SoftTokens, pack

PAD, PLACEHOLDER = 0, 99


def test_rows_of_several_sequences() -> None:
    ops = create("reference")
    soft = SoftTokens(start=2, n=3, values=ops.floats(np.arange(6).reshape(3, 2)))
    a = Sequence(slot=1, token_ids=[5, 6, 99, 99, 99, 7], soft=[soft], n_done=1)
    b = Sequence(slot=0, token_ids=[8, 9], n_done=0)
    batch = pack(ops, [Part(b, 2, 1), Part(a, 3, 0)], PAD, {PLACEHOLDER})
    assert batch.ids.tolist() == [8, 9, 6, PAD, PAD]
    assert batch.positions.tolist() == [0, 1, 1, 2, 3]
    assert batch.slots.tolist() == [0, 0, 1, 1, 1]
    assert (batch.n_rows, batch.n_wanted) == (5, 1)
    assert batch.wanted.tolist() == [1]
    ((rows, values),) = batch.soft
    assert rows.tolist() == [3, 4]
    assert values.tolist() == [[0, 1], [2, 3]]
    a.n_done = 4
    batch = pack(ops, [Part(a, 2, 2)], PAD, {PLACEHOLDER})
    assert batch.wanted is None
    assert batch.ids.tolist() == [PAD, 7]
    ((rows, values),) = batch.soft
    assert (rows.tolist(), values.tolist()) == ([0], [[4, 5]])


def test_a_placeholder_without_soft_tokens_is_the_pad_token() -> None:
    ops = create("reference")
    batch = pack(ops, [Part(Sequence(0, [99, 1]), 2, 0)], PAD, {PLACEHOLDER})
    assert batch.ids.tolist() == [PAD, 1]
    assert not batch.soft
