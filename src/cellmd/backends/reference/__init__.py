"""The ground truth: every operation of `backends/ops.py` in plain NumPy float32.

It is written to be read, not to be fast. Weights are decoded to float32 as they are used; what stays decoded is bounded
(`weights.DECODED_BYTES`). Products go through NumPy's BLAS, whose order of summation may depend on how many rows are
multiplied at once: results here are independent of chunking and company to float32 rounding, not bit for bit.
"""

from __future__ import annotations

from cellmd.backends.ops import Ops


def create(threads: int | None = None) -> Ops:
    """The reference backend. `threads` is of no effect: NumPy's BLAS decides for itself."""
    from cellmd.backends.reference.operations import ReferenceOps

    return ReferenceOps()
