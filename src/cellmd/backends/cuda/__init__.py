"""The GPU backend: torch tensors, INT4 weights on the device, kernels in Triton. See docs/gpu.md."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cellmd.errors import BackendError

if TYPE_CHECKING:
    from cellmd.backends.cuda.operations import CudaOps

TABLES = "CELLMD_CUDA_TABLES"
"""Environment variable: "device" keeps tables that only rows are looked up of in its memory, not the host's."""

_LEAST_CAPABILITY = (8, 0)
"""Compute capability from which on products in bfloat16 are done by the tensor cores."""

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
"""One of them is there wherever a Linux system has an NVIDIA GPU and its driver (the last under Windows)."""


def likely() -> bool:
    """Whether it is worth a try: an NVIDIA GPU seems to be here, and torch. Cheap: torch is not imported."""
    has_gpu = sys.platform == "win32" or any(Path(file).exists() for file in _DEVICE_FILES)
    return has_gpu and find_spec("torch") is not None


def create(threads: int | None = None) -> CudaOps:
    """The backend on torch's current CUDA device. `threads` is of no effect.

    Raises BackendError saying what is missing: torch, torch with CUDA, a driver and a GPU, its compute capability.
    """
    tables = os.environ.get(TABLES, "host")
    if tables not in ("host", "device"):
        raise BackendError(f"the environment variable {TABLES} must be host or device, found {tables!r}")
    works = () if "torch" in sys.modules else (_start_driver, _read_triton)
    beside = [threading.Thread(target=work, name="cellmd-start") for work in works]
    for thread in beside:
        thread.start()
    with _without_collector():
        check()
    for thread in beside:
        thread.join()
    if find_spec("triton") is None:
        from cellmd.backends.cuda.operations import CudaOps
    else:
        from cellmd.backends.cuda.fused import FusedCudaOps as CudaOps
    return CudaOps("cuda", tables_on_device=tables == "device")


def check() -> None:
    """Raise BackendError for the first thing that is missing here."""
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            f"backend 'cuda' needs torch, which cannot be imported ({error}); pip install 'cellmd[cuda]'"
        ) from error
    if torch.version.cuda is None:
        raise BackendError(
            f"backend 'cuda' needs torch with CUDA, found {torch.__version__} without; "
            "install the build of torch for your driver, see https://pytorch.org"
        )
    if not torch.cuda.is_available():
        raise BackendError(
            f"backend 'cuda': torch {torch.__version__} finds no usable NVIDIA GPU; "
            f"install or update the driver (CUDA {torch.version.cuda} or newer), and see CUDA_VISIBLE_DEVICES"
        )
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        found, least = (".".join(map(str, version)) for version in (capability, _LEAST_CAPABILITY))
        raise BackendError(
            f"backend 'cuda' needs a GPU of compute capability {least} or higher; "
            f"{torch.cuda.get_device_name()} has {found}; use backend 'cpu'"
        )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector would look through what torch's import makes again and again, a tenth of its time: all of that
    stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# What torch's import, more than a second, need not wait for, nor the first kernel for these.


def _start_driver() -> None:
    from cellmd.backends.cuda import driver

    driver.start()


def _read_triton() -> None:
    """Triton finds kernels that an earlier process compiled by a checksum of all of itself: most of a second, which the
    first kernel would wait for."""
    with suppress(ImportError):
        from triton.runtime.cache import triton_key

        triton_key()
