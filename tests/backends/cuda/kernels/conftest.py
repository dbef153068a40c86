"""The kernels, each against plain torch in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from cellmd.backends.cuda import likely

_GPU = likely()
if not _GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

if not (find_spec("torch") and find_spec("triton")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if _GPU else "cpu"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
