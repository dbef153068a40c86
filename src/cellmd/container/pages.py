"""How the system keeps and maps a file.

A decoding step reads every weight of the decoder once. Through pages of 4 kB that goes a tenth to a sixth slower than
through pages of 2 MB. Linux maps such pages of a file where its cache holds the file in as large pieces, and those are
as large as the reads or writes that filled it. So a file is written into pieces made beforehand, and what is read whole
is read in such pieces from the disk; a file that came otherwise, by a download say, when it is verified. What is read
here and there is mapped in small pages: a large one would bring 2 MB into memory for a few bytes. Where the system
knows none of this, nothing is different but the speed.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable
from contextlib import suppress

HUGE_PAGE_BYTES = 2 << 20

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14, which the mmap module does not name."""

_KNOWN = hasattr(mmap, "MADV_HUGEPAGE")


def advise_reader(mapped: mmap.mmap, whole: Iterable[tuple[int, int]]) -> None:
    """Large pages for the ranges (start, stop) of a mapped file, which are read whole, small ones for the rest."""
    if not _KNOWN:
        return
    with suppress(OSError):
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
        for start, stop in _joined(whole):
            start -= start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_HUGEPAGE, start, stop - start)


def bring_in(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Bytes start .. stop into the cache by way of the map, in pieces as large as it was told to have; to be called
    before they are read or written otherwise: that would bring small pieces, and no large one fits around them."""
    if not _KNOWN:
        return
    with suppress(OSError):
        start -= start % mmap.PAGESIZE
        mapped.madvise(_POPULATE_READ, start, stop - start)
        start -= start % HUGE_PAGE_BYTES  # of what was mapped along with it nothing shall count as memory in use
        stop = min(stop - stop % -HUGE_PAGE_BYTES, len(mapped))
        mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)  # it stays in the cache


def forget(file: int) -> None:
    """Have the cache let go of a file, but for what a process has mapped: what is read next comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.fsync(file)  # what is not on the disk yet would stay
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, those made one that lie within a page of each other."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] < mmap.PAGESIZE:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


class LargePieces:
    """Makes the cache of a file that is being written of large pieces. Safe to use from any thread."""

    def __init__(self, file: int, n_bytes: int) -> None:
        self._n_pieces = n_bytes // HUGE_PAGE_BYTES
        self._made: set[int] = set()
        self._lock = threading.Lock()
        self._mapped: mmap.mmap | None = None
        if _KNOWN and self._n_pieces:
            with suppress(OSError):
                mapped = mmap.mmap(file, self._n_pieces * HUGE_PAGE_BYTES, access=mmap.ACCESS_READ)
                mapped.madvise(mmap.MADV_HUGEPAGE)
                self._mapped = mapped

    def make(self, start: int, stop: int) -> None:
        """Before bytes start .. stop are written: read the pieces that they meet, which are holes of the file yet."""
        for piece in range(start // HUGE_PAGE_BYTES, min(self._n_pieces, -(-stop // HUGE_PAGE_BYTES))):
            with self._lock:
                if self._mapped is None or piece in self._made:
                    continue
                self._made.add(piece)
            bring_in(self._mapped, piece * HUGE_PAGE_BYTES, (piece + 1) * HUGE_PAGE_BYTES)

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
