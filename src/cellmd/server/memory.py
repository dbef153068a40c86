"""How the server asks the C library to deal with memory. Nothing heavy is imported here: it has to be told before the
first thread begins, and numerical libraries begin some when they are imported."""

from __future__ import annotations

import contextlib
import ctypes

# of glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGE_BYTES = 4 << 20


def give_memory_back() -> None:
    """What is freed serves whoever asks next, or goes back to the system. Does nothing where there is no glibc.

    glibc gives each thread a pool of its own, of which each keeps the most that its threads ever needed at once; media
    are decoded and recordings heard in threads that come and go, so that sum would grow for hours. There is one pool
    instead: the server's threads allocate under Python's lock, and its kernels not at all. And glibc keeps what is
    freed once it has seen a block of that size freed: large bodies and media, up to 32 MB each, would stay with the
    process. With a fixed bound they go back.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)
