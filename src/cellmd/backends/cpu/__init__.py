"""The native backend: C++ kernels for the processor at hand, weights read in place from the mapped file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cellmd.errors import ArgumentError, BackendError

if TYPE_CHECKING:
    from cellmd.backends.cpu.operations import CacheDtype, CpuOps


KV_CACHES = ("f16", "f32", "i8")
"""How keys and values can be kept."""


def create(threads: int | None = None, cache_dtype: CacheDtype = "f16") -> CpuOps:
    """The native backend on `threads` threads (None: as many processors as this process may use).

    cache_dtype: how keys and values are kept: "f16"; "f32", twice the memory; "i8", half of it, with one scale for each
    key and value. Raises BackendError where the native module is missing or cannot run.
    """
    try:
        from cellmd.backends.cpu.operations import CpuOps
    except ImportError as error:
        hint = "install cellmd again, with a C++20 compiler"
        raise BackendError(f"the native module cannot be loaded ({error}); {hint}") from error
    n_threads = available_processors() if threads is None else threads
    if not 1 <= n_threads <= 1024:
        raise ArgumentError(f"threads must be 1..1024, found {threads}")
    try:
        return CpuOps(n_threads, cache_dtype)
    except RuntimeError as error:  # the environment asks for instructions that the machine lacks
        raise BackendError(str(error)) from error


def available_processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
