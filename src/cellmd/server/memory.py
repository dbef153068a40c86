"""How the C library deals with the server's memory. Does nothing where there is no glibc.

Nothing heavy is imported here: the library has to be told before the first thread begins, and numerical libraries begin
some when they are imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

# of glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGE_BYTES = 4 << 20
_TRIM_SECONDS = 10.0


def share_memory() -> None:
    """What one thread frees serves the others, and large blocks go back to the system.

    glibc gives each thread a pool of its own, of which each keeps the most that its threads ever needed at once; media
    are decoded and recordings heard in threads that come and go, so that sum would grow for hours. There is one pool
    instead: the server's threads allocate under Python's lock, and its kernels not at all. And glibc keeps what is
    freed once it has seen a block of that size freed: large bodies and media, up to 32 MB each, would stay with the
    process. With a fixed bound they go back.
    """
    set_option = _of_glibc("mallopt")
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


@contextlib.contextmanager
def memory_given_back() -> Iterator[None]:
    """While this lasts, pages that nobody uses go back to the system every ten seconds; it takes a millisecond or two.

    Of itself glibc gives back only what lies above all that is in use, and a response that is kept may lie there long.
    """
    trim, ended = _of_glibc("malloc_trim"), threading.Event()

    def give_back(trim: Any) -> None:
        while not ended.wait(_TRIM_SECONDS):
            trim(ctypes.c_size_t(0))

    if trim is not None:
        threading.Thread(target=give_back, args=(trim,), name="cellmd-memory", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _of_glibc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):
        return None
