"""A finished file held against the checkpoint it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cellmd.container import Container
from cellmd.convert.checkpoint import Checkpoint
from cellmd.errors import CheckpointError
from cellmd.quant import ErrorStats, compare


def compare_with_source(
    container: Container, checkpoint: Checkpoint, progress: Callable[[int], None] | None = None
) -> dict[str, ErrorStats]:
    """The error of every tensor of the file against the checkpoint, by name, in the file's order.

    progress: called with the stored bytes compared since the last call. Raises CheckpointError if the checkpoint lacks
    a tensor of the file or has it in another shape.
    """
    errors = {}
    for name, packed in container.tensors.items():
        if name not in checkpoint.tensors:
            raise CheckpointError(
                f"{checkpoint.name} has no tensor {name!r}: it is not what {container.path} was made of"
            )
        if checkpoint.shape(name) != packed.shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {checkpoint.shape(name)} in {checkpoint.name}, "
                f"{packed.shape} in {container.path}"
            )
        errors[name] = compare(packed, _Rows(checkpoint, name))
        if progress is not None:
            progress(packed.n_bytes)
    return errors


@dataclass(frozen=True)
class _Rows:
    """One tensor of a checkpoint, read by rows."""

    checkpoint: Checkpoint
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.checkpoint.shape(self.name)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.checkpoint.read_rows(self.name, rows.start, rows.stop)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.checkpoint.read_rows(self.name)
