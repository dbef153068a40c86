"""What a conversion will write, decided in full before the first byte: each tensor's coding, size and blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.recipe import Recipe
from cellmd.convert.safetensors import SourceDtype
from cellmd.convert.tensor_map import TensorSpec, check_tensors
from cellmd.quant import Coding, Sizes, sizes
from cellmd.quant.tensor import TILE_ROWS

BLOCK_WEIGHTS = 1 << 19
"""Numbers encoded by one thread at a time. It does not depend on the machine: sums of errors are taken block by block,
and the same checkpoint must give the same file everywhere."""


@dataclass(frozen=True)
class Block:
    """Rows start..stop of a tensor, and the bytes of reading them; stop None is the whole tensor."""

    start: int
    stop: int | None
    source_bytes: int


@dataclass(frozen=True)
class PlannedTensor:
    """source_bytes: what reading it takes. sizes: bytes of the blobs that it becomes."""

    spec: TensorSpec
    coding: Coding
    source_bytes: int
    sizes: Sizes

    def blocks(self) -> Iterator[Block]:
        """The parts that are encoded on their own, in order. They begin at multiples of 16 rows, as layouts need."""
        shape = self.spec.shape
        if math.prod(shape) <= BLOCK_WEIGHTS:
            yield Block(0, None, self.source_bytes)
            return
        step = max(TILE_ROWS, BLOCK_WEIGHTS // math.prod(shape[1:]) // TILE_ROWS * TILE_ROWS)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            yield Block(start, stop, self.source_bytes // shape[0] * (stop - start))


def plan_conversion(checkpoint: Checkpoint, recipe: Recipe, group_size: int | None) -> list[PlannedTensor]:
    """The tensors to store, in the order of the file. Raises CheckpointError if the checkpoint is not as its
    configuration says."""
    specs = check_tensors(checkpoint.config, {name: checkpoint.shape(name) for name in checkpoint.tensors})
    return [_plan(checkpoint, spec, recipe, group_size) for spec in specs]


def _plan(checkpoint: Checkpoint, spec: TensorSpec, recipe: Recipe, group_size: int | None) -> PlannedTensor:
    # What conversion changes has more digits than the source's: (bfloat16 + 1) * factor.
    source: SourceDtype = "f32" if spec.transformed else checkpoint.dtype(spec.name)
    coding = recipe.coding(spec, source, group_size)
    planned = PlannedTensor(spec, coding, checkpoint.n_bytes(spec.name), sizes(spec.shape, coding))
    if coding.dtype == "f16" and source != "f16" and not _fits_f16(checkpoint, planned):
        coding = Coding(source)
        return PlannedTensor(spec, coding, planned.source_bytes, sizes(spec.shape, coding))
    return planned


def _fits_f16(checkpoint: Checkpoint, planned: PlannedTensor) -> bool:
    """Whether no finite number of a tensor is beyond float16 (65,504), as the bounds of unlimited layers may be."""
    for block in planned.blocks():
        values = checkpoint.read_rows(planned.spec.name, block.start, block.stop)
        with np.errstate(over="ignore"):
            if (np.isinf(values.astype(np.float16)) & np.isfinite(values)).any():
                return False
    return True
