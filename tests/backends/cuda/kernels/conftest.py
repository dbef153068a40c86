"""The kernels, each against plain torch in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

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


@pytest.fixture(scope="session", autouse=not _GPU)
def _bounds_of_loops() -> None:
    """Triton 3.6's interpreter makes bounds of loops of arrays of one element in a way that NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_also_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_also_index


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
