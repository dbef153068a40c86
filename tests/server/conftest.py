"""A small converted model with weights of its own, made once for all tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import cellmd
import model_cases
from live_server import Live


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_cases.build(tmp_path_factory.mktemp("server"), "tiny", "aggressive")


@pytest.fixture(scope="session")
def model(path: Path) -> Iterator[cellmd.Model]:
    with cellmd.load(path, threads=1, context=2048) as model:
        yield model


@pytest.fixture(scope="module")
def live(model: cellmd.Model) -> Iterator[Live]:
    running = Live(model)
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
