"""Every test runs on every instruction set that this machine has. The contract's own tests are in tests/backends."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmd.backends.cpu.operations import CpuOps

HAS_NATIVE = find_spec("cellmd._native") is not None
if not HAS_NATIVE:  # a source tree that was never built, on the path as it lies
    collect_ignore_glob = ["test_*.py"]

INSTRUCTION_SETS = import_module("cellmd._native").instruction_sets() if HAS_NATIVE else []


@pytest.fixture(params=INSTRUCTION_SETS, scope="module")
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def make(isa: str) -> Callable[..., CpuOps]:
    """make(threads, cache_dtype): a backend with the instruction set at hand."""

    def create(threads: int = 2, cache_dtype: Any = "f16") -> CpuOps:
        from cellmd.backends import cpu

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CELLMD_ISA", isa)
            ops = cpu.create(threads, cache_dtype)
        assert ops.instruction_set == isa
        return ops

    return create


@pytest.fixture(scope="module")
def ops(make: Callable[..., CpuOps]) -> CpuOps:
    return make()
