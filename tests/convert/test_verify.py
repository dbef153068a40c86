"""A file held against its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellmd.container import Container
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.convert import convert
from cellmd.convert.verify import compare_with_source
from cellmd.errors import CheckpointError
from checkpoints import make_checkpoint


def test_the_errors_are_those_of_the_conversion(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny")
    report = convert(folder, tmp_path / "x.cellmd")
    progress: list[int] = []
    with Container.open(tmp_path / "x.cellmd") as container, Checkpoint.open(folder) as checkpoint:
        errors = compare_with_source(container, checkpoint, progress.append)
    assert list(errors) == [tensor.name for tensor in report.tensors]
    assert progress == [tensor.stored_bytes for tensor in report.tensors]
    for tensor in report.tensors:
        assert errors[tensor.name].count == tensor.error.count
        assert errors[tensor.name].max_abs == pytest.approx(tensor.error.max_abs, rel=1e-5)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    convert(make_checkpoint(tmp_path / "tiny"), tmp_path / "x.cellmd")
    with Container.open(tmp_path / "x.cellmd") as container:
        with (
            Checkpoint.open(make_checkpoint(tmp_path / "wide", shape="wide_heads")) as wide,
            pytest.raises(CheckpointError, match="has shape"),
        ):
            compare_with_source(container, wide)
        with (
            Checkpoint.open(make_checkpoint(tmp_path / "text", shape="text_only")) as text,
            pytest.raises(CheckpointError, match="has no tensor"),
        ):
            compare_with_source(container, text)
