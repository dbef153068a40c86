"""Converts a checkpoint into one .cellmd file, a block of rows at a time, over all cores.

Everything that can be wrong with the checkpoint, the target and the options is found before the first byte is written.
Then each thread reads a block of rows, encodes it and writes it to its place, which is known from the start: a block is
all that a thread holds, and blocks in flight are few, so memory does not grow with the checkpoint.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cellmd.container import ContainerWriter, TensorDeclaration
from cellmd.convert.assets import stored_assets
from cellmd.convert.budget import Spending, replan
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import Block, PlannedTensor, plan_conversion
from cellmd.convert.recipe import check_group_size, find_recipe
from cellmd.convert.report import ConversionReport, TensorReport
from cellmd.convert.tensor_map import Component, expected_tensors
from cellmd.errors import ArgumentError, ContainerError
from cellmd.quant import ErrorStats, PackedTensor, encode_block
from cellmd.quant.blocks import stored_block

Progress = Callable[[int, int, str], None]
"""Called with the bytes of the source that are done, all its bytes, and the name of the tensor in hand."""


class Rounder(Protocol):
    """Decides about tensors from the model as a whole, ahead of the conversion.

    description: for the file's provenance. choose: codings that take at most extra_bytes more than the plan's, which
    are the smallest. round: some of the stored tensors. finished: called when the file is complete.
    """

    @property
    def description(self) -> str: ...

    def choose(
        self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], extra_bytes: int, n_threads: int
    ) -> Spending: ...

    def round(
        self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], n_threads: int
    ) -> Mapping[str, PackedTensor]: ...

    def finished(self) -> None: ...


_SMALLEST = "aggressive"
"""The recipe that a budget starts from."""

_HEADER_GROWTH = 16 << 10
"""Bytes: how much longer a header gets by saying how a budget was spent, and with longer numbers in it."""

_BLOCKS_AHEAD = 2
"""Blocks waiting for each thread."""


def convert(
    source: str | Path,
    target: str | Path,
    recipe: str = "aggressive",
    group_size: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
    copy_tokenizer: bool = False,
    rounder: Rounder | None = None,
    budget: int | None = None,
) -> ConversionReport:
    """Convert the checkpoint `source`, a folder or a hub id, into the file `target`.

    recipe: "aggressive" or "float" (`recipe.py`). group_size: columns that share a scale in every INT4 tensor, 32, 64,
    128 or 256, 0 for a whole row, None for the recipe's own. progress: called from this thread. threads: None is all
    cores. copy_tokenizer: also write the tokenizer as STEM.tokenizer.json beside the file, which holds it anyway.
    rounder: makes tensors that depend on more than their own rows (`cellmd.calibration`). budget: bytes that the file
    may take; the rounder then chooses each tensor's coding, from those of the recipe "aggressive" on.

    The same source and options give the same bytes, whatever the number of threads. The file appears complete,
    replacing one of that name, or not at all. Raises CheckpointError, UnsupportedModelError, ArgumentError, and
    ContainerError if the file cannot be written.
    """
    started = time.perf_counter()
    target, chosen = Path(target), find_recipe(recipe)
    check_group_size(group_size)
    n_threads = _thread_count(threads)
    with Checkpoint.open(source) as checkpoint:
        _check_target(target, checkpoint)
        plan = plan_conversion(checkpoint, chosen, group_size)
        provenance = _provenance(checkpoint, recipe, group_size, rounder)
        spending = None
        if budget is not None:
            spending = _spend(budget, target, checkpoint, plan, provenance, rounder, n_threads)
            plan = replan(plan, spending.codings)
            provenance |= {"recipe": "budget", "budget": {"bytes": budget, **spending.as_dict()}}
        with _writer(target, checkpoint, plan, provenance) as writer:
            _check_space(target, writer.n_bytes)
            rounded = {} if rounder is None else rounder.round(checkpoint, plan, n_threads)
            tensors = _write_tensors(checkpoint, plan, rounded, writer, n_threads, progress)
            quality = {each.name: each.error.as_json() for each in tensors if each.quantised}
            writer.finish({"tensors": quality})
        if rounder is not None:
            rounder.finished()
        tokenizer_path = _copy_tokenizer(checkpoint, target) if copy_tokenizer else None
        return ConversionReport(
            source=checkpoint.name,
            path=target,
            tokenizer_path=tokenizer_path,
            recipe=recipe if spending is None else "budget",
            group_size=group_size,
            spending=spending,
            seconds=time.perf_counter() - started,
            file_bytes=writer.n_bytes,
            original_bytes=_original_bytes(checkpoint),
            tensors=tensors,
            dropped=tuple(sorted(set(checkpoint.tensors) - {each.spec.name for each in plan})),
        )


def _writer(
    target: Path, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], provenance: Mapping[str, object]
) -> ContainerWriter:
    return ContainerWriter(
        target,
        tensors=[TensorDeclaration(each.spec.name, each.spec.shape, each.coding) for each in plan],
        config=checkpoint.config_json,
        assets=stored_assets(checkpoint.assets),
        provenance=provenance,
    )


def _spend(
    budget: int,
    target: Path,
    checkpoint: Checkpoint,
    plan: Sequence[PlannedTensor],
    provenance: Mapping[str, object],
    rounder: Rounder | None,
    n_threads: int,
) -> Spending:
    """Raises ArgumentError for a budget below the smallest file there can be, or without a rounder to spend it."""
    if rounder is None:
        raise ArgumentError("a budget is spent where measuring the model says; give calibration material for that")
    if provenance["recipe"] != _SMALLEST or provenance["group_size"] is not None:
        raise ArgumentError("a budget chooses codings itself; leave out the recipe and the group size")
    with _writer(target, checkpoint, plan, provenance) as writer:
        smallest = writer.n_bytes + _HEADER_GROWTH
    if smallest > budget:
        raise ArgumentError(
            f"a budget of {budget / 1e6:.2f} MB is too small: with every matrix at its smallest, this model takes "
            f"{math.ceil(smallest / 1e4) / 1e2:.2f} MB"
        )
    _check_space(target, budget)
    return rounder.choose(checkpoint, plan, budget - smallest, n_threads)


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise ArgumentError(f"threads must be at least 1, found {threads}")
    return threads


def _check_target(target: Path, checkpoint: Checkpoint) -> None:
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder; give the name of the file to write")
    if not target.parent.is_dir():
        raise ArgumentError(f"{target.parent}: no such folder to write {target.name} to")
    if target.exists() and any(path.exists() and target.samefile(path) for path in checkpoint.folder.iterdir()):
        raise ArgumentError(f"{target} belongs to the checkpoint; choose another name for the file to write")


def _check_space(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise ContainerError(
            f"{target}: the file takes {n_bytes / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB left; free some or "
            "choose another place (an existing file of that name stays until the new one is complete)"
        )


def _provenance(
    checkpoint: Checkpoint, recipe: str, group_size: int | None, rounder: Rounder | None
) -> dict[str, object]:
    from cellmd import __version__

    return {
        "tool": f"cellmd {__version__}",
        "source": checkpoint.name,
        "source_fingerprint": checkpoint.fingerprint(),
        "recipe": recipe,
        "group_size": group_size,
        **({} if rounder is None else {"calibration": rounder.description}),
    }


def _write_tensors(
    checkpoint: Checkpoint,
    plan: list[PlannedTensor],
    rounded: Mapping[str, PackedTensor],
    writer: ContainerWriter,
    n_threads: int,
    progress: Progress | None,
) -> tuple[TensorReport, ...]:
    """Encode and write every tensor; the first error ends it. Errors are added up in the order of the blocks."""

    def write(planned: PlannedTensor, block: Block) -> ErrorStats:
        name = planned.spec.name
        if name in rounded:
            rows = checkpoint.read_rows(name, block.start, block.stop)
            encoded = stored_block(rounded[name], block.start, rows)
        else:
            rows = checkpoint.read_weights(name, block.start, block.stop)
            encoded = encode_block(rows, planned.coding, name=name)
        writer.write(name, block.start, encoded)
        return encoded.error

    total, done = sum(planned.source_bytes for planned in plan), 0
    errors = {planned.spec.name: ErrorStats() for planned in plan}
    jobs = ((planned, block) for planned in plan for block in planned.blocks())
    with _pool(n_threads) as pool:
        for (planned, block), error in _in_order(pool, write, jobs, n_threads * _BLOCKS_AHEAD):
            errors[planned.spec.name] += error
            done += block.source_bytes
            if progress is not None:
                progress(done, total, planned.spec.name)
    return tuple(
        TensorReport(
            name=planned.spec.name,
            component=planned.spec.component,
            quantised=planned.coding.quantised,
            stored_bytes=planned.sizes.total,
            error=errors[planned.spec.name],
        )
        for planned in plan
    )


@contextmanager
def _pool(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Left by an error, it starts nothing more and waits for what runs, so that nobody writes to a removed file."""
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="convert")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[PlannedTensor, Block], ErrorStats],
    jobs: Iterable[tuple[PlannedTensor, Block]],
    most_waiting: int,
) -> Iterator[tuple[tuple[PlannedTensor, Block], ErrorStats]]:
    """Jobs and their results in the jobs' own order; never more than `most_waiting` are under way."""
    waiting: deque[tuple[tuple[PlannedTensor, Block], Future[ErrorStats]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(work, *job)))
        if len(waiting) >= most_waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    for job, future in waiting:
        yield job, future.result()


def _original_bytes(checkpoint: Checkpoint) -> dict[Component, int]:
    components = {name: spec.component for name, spec in expected_tensors(checkpoint.config).items()}
    original: dict[Component, int] = {}
    for name in checkpoint.tensors:
        component = components.get(name, "text")  # what is not in the table is a tied output head
        original[component] = original.get(component, 0) + checkpoint.n_bytes(name)
    return original


def _copy_tokenizer(checkpoint: Checkpoint, target: Path) -> Path:
    path = target.with_name(f"{target.name.removesuffix('.cellmd')}.tokenizer.json")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(checkpoint.assets["tokenizer.json"])
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ContainerError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path
