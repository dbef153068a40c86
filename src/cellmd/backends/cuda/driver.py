"""The CUDA driver itself, for what torch is too late for or has no function for.

It answers with numbers, 0 where all is well. Unlike a failure of torch's, one of these leaves nothing behind that the
next of torch's calls would report.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_PORTABLE, _MAPPED, _READ_ONLY = 1, 2, 8
"""Flags of cuMemHostRegister: for every context; at an address of the device too; the device will only read."""


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def start() -> None:
    """Make the context of the first device, the one that torch will use: a third of a second in which nothing else has
    to wait. What goes wrong here will again when torch does it, which says what it was."""
    library = _library()
    if library is not None and library.cuInit(0) == 0:
        library.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)


def pin(address: int, n_bytes: int, *, read_only: bool = False) -> int:
    """Keep host memory where it is, seen by the device. read_only: memory that is mapped to be read, such as a file."""
    library = _library()
    if library is None:
        return -1
    flags = _PORTABLE | _MAPPED | (_READ_ONLY if read_only else 0)
    return int(library.cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), ctypes.c_uint(flags)))
