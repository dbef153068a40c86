"""A small converted model with weights of its own, and the trained one that comes with cellmd."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import pytest

import cellmd
import model_cases


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_cases.build(tmp_path_factory.mktemp("transcribe"), "tiny", "aggressive")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says something whatever it is given to hear."""
    path = tmp_path_factory.mktemp("demo") / "demo.cellmd"
    with as_file(files("cellmd.demo") / "checkpoint") as checkpoint:
        cellmd.convert(checkpoint, path)
    return path
