"""A small converted model with weights of its own, made once for all tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import cellmd
import model_cases


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_cases.build(tmp_path_factory.mktemp("server"), "tiny", "aggressive")


@pytest.fixture(scope="session")
def model(path: Path) -> Iterator[cellmd.Model]:
    with cellmd.load(path, threads=1, context=2048) as model:
        yield model
