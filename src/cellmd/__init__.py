"""Gemma 4 in one INT4 file: text, sound, pictures and films, on the machine in front of you.

    import cellmd

    cellmd.convert("models/gemma-4-E2B-it", "gemma-4-E2B-it.cellmd")
    with cellmd.load("gemma-4-E2B-it.cellmd") as model:
        print(model.generate("What is said here?", audio=["note.m4a"]).text)

Everything public is in this module; the others may change from release to release. Nothing heavy is imported before it
is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cellmd.errors import (
    ArgumentError,
    BackendError,
    BusyError,
    CellmdError,
    CheckpointError,
    ContainerError,
    ContextLengthError,
    CorruptError,
    HeaderError,
    LayoutError,
    MediaDecodeError,
    MediaError,
    MediaLimitError,
    NotCellmdError,
    PromptError,
    TruncatedError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from os import PathLike

    from cellmd.api import Chat, Model, load
    from cellmd.convert.convert import Progress
    from cellmd.convert.report import ConversionReport
    from cellmd.processors.features import Prompt
    from cellmd.processors.tool_calls import ToolCall
    from cellmd.runtime.result import Piece, Result, Timings, Usage

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BackendError",
    "BusyError",
    "CellmdError",
    "Chat",
    "CheckpointError",
    "ContainerError",
    "ContextLengthError",
    "CorruptError",
    "HeaderError",
    "LayoutError",
    "MediaDecodeError",
    "MediaError",
    "MediaLimitError",
    "Model",
    "NotCellmdError",
    "Piece",
    "Prompt",
    "PromptError",
    "Result",
    "Timings",
    "ToolCall",
    "TruncatedError",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "convert",
    "load",
]

_LAZY = {
    "Chat": "cellmd.api",
    "Model": "cellmd.api",
    "Piece": "cellmd.runtime.result",
    "Prompt": "cellmd.processors.features",
    "Result": "cellmd.runtime.result",
    "Timings": "cellmd.runtime.result",
    "ToolCall": "cellmd.processors.tool_calls",
    "Usage": "cellmd.runtime.result",
    "load": "cellmd.api",
}

# The function below has the name of a subpackage. Importing a subpackage for the first time puts it into its parent
# under its name; so it is imported here, where it still costs nothing, and the function takes its place for good.
import_module("cellmd.convert")


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    recipe: str = "aggressive",
    group_size: int | None = None,
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    copy_tokenizer: bool = False,
    calibrate: str | PathLike[str] | None = None,
    budget: int | None = None,
) -> ConversionReport:
    """Convert the checkpoint `source`, a folder or a hub id, into the file `target`; what was done is returned.

    recipe: "aggressive" (every 2-D weight at INT4), "balanced" or "quality" (more bits where they buy most), "qat" (the
    grid of quantisation-aware checkpoints) or "float" (nothing quantised). group_size: columns that share a scale in
    every quantised tensor, 32, 64, 128 or 256; 0 for a whole row; None for the recipe's own choice.
    progress: called with (bytes done, bytes in all, tensor name). threads: None for all cores.
    copy_tokenizer: also write STEM.tokenizer.json beside the file, which holds the tokenizer anyway.
    calibrate: choose codes for the inputs that each matrix gets: on "default", the material that comes with cellmd, or
    on a folder of texts (.txt), sounds and pictures. Keeps much more of the model, takes minutes to hours
    (docs/quantisation.md). What is finished is kept in the folder TARGET.calibration until the file is complete; an
    interrupted conversion goes on from there.
    budget: bytes that the file may take, instead of a recipe; needs `calibrate`. Each tensor's coding is chosen by what
    it is measured to cost, starting from those of "aggressive".

    The same source and options give the same bytes (with `calibrate`: on the same machine). The file appears complete
    or not at all.
    Raises CheckpointError, UnsupportedModelError, ArgumentError, ContainerError.
    """
    from pathlib import Path

    run = import_module("cellmd.convert.convert").convert
    rounder = None
    if calibrate is not None:
        state_folder = Path(f"{target}.calibration")
        rounder = import_module("cellmd.calibration.material").Calibration.find(calibrate, progress, state_folder)
    report: ConversionReport = run(
        source if isinstance(source, str) else Path(source),
        Path(target),
        recipe=recipe,
        group_size=group_size,
        progress=progress,
        threads=threads,
        copy_tokenizer=copy_tokenizer,
        rounder=rounder,
        budget=budget,
    )
    return report


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'cellmd' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
