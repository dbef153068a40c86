"""Every operation test runs on every backend that is installed."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from cellmd.backends import create, installed
from cellmd.backends.ops import Ops

TORCH = pytest.param("torch", marks=pytest.mark.reference)
"""The GPU backend on torch's CPU device, where everything is float32. tests/backends/cuda has the rest."""


@pytest.fixture(params=[*(name for name in installed() if name != "cuda"), TORCH], scope="session")
def ops(request: pytest.FixtureRequest) -> Ops:
    """The native backend keeps keys and values in float32 here: one bound serves all. tests/native has the rest."""
    if request.param == "torch":
        return import_module("cellmd.backends.cuda.plain").TorchOps("cpu")
    if request.param == "cpu":
        return import_module("cellmd.backends.cpu").create(cache_dtype="f32")
    return create(request.param)


@pytest.fixture(autouse=True)
def _fresh_pass(ops: Ops) -> None:
    ops.begin()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
