"""The bytes of a compiled vocabulary: constants, the header, where each section lies. docs/tokenizer.md is normative.

Sections follow the header in a fixed order, each at the next multiple of 64. Their sizes follow from the header's
counts, so there are no offsets that could overlap or leave the buffer: only one total that must match it.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MAGIC = b"CELLMVOC"
VERSION = 1
ALIGNMENT = 64

ID_BITS = 20
MAX_TOKENS = (1 << ID_BITS) - 1  # a slot holds id + 1, and 0 says empty
MAX_TOKEN_BYTES = 4095  # so that a merge's rank can hold the length of its left half in 12 bits
MAX_PIPELINE_BYTES = 1 << 22  # about 35,000 added tokens
MAX_SLOT_RUN = 128  # longest run of occupied slots: bounds a look-up in a hostile table

_HEADER = struct.Struct("<8s9I")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Counts:
    """The header after the magic bytes and the version."""

    tokens: int
    model_tokens: int
    """Tokens below this id belong to the BPE model; those from it on were only added."""
    slots: int
    merges: int
    """Merges listed explicitly; the rest, if `derived`, follow from the vocabulary."""
    derived: int
    border_bits: int
    pipeline_bytes: int
    string_bytes: int

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, *astuple(self))

    @classmethod
    def unpack(cls, header: bytes) -> tuple[bytes, int, Counts]:
        """Magic bytes, version and counts of the first HEADER_BYTES bytes, unchecked."""
        magic, version, *counts = _HEADER.unpack(header)
        return magic, version, cls(*counts)

    def sections(self) -> dict[str, slice]:
        """Name -> byte range, in file order. The end of `strings` is the length of the whole table."""
        sizes = {
            "pipeline": self.pipeline_bytes,
            "offsets": 4 * (self.tokens + 1),
            "slots": 4 * self.slots,
            "borders": self.border_bits // 8,
            "merge_keys": 8 * self.merges,
            "merge_codes": 8 * self.merges,
            "strings": self.string_bytes,
        }
        ranges, position = {}, HEADER_BYTES
        for name, size in sizes.items():
            start = -(-position // ALIGNMENT) * ALIGNMENT
            position = start + size
            ranges[name] = slice(start, position)
        return ranges


def border_bit(left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    """The bit of `borders` that says whether a merge may join the code points `left` and `right`.

    left, right: uint32 (N,). bits: a power of two, the number of bits. Returns uint32 (N,) below `bits`.
    """
    mixed = (left * np.uint32(0x9E3779B1)) ^ (right * np.uint32(0x85EBCA77))
    return np.asarray(mixed >> np.uint32(33 - bits.bit_length()), dtype=np.uint32)


def may_join(text: str, borders: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """For each pair of neighbouring characters of `text` (N): may a merge join them? bool (N - 1,).

    Raises UnicodeEncodeError if the text holds a lone surrogate.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    bit = border_bit(codes[:-1], codes[1:], 8 * len(borders))
    found = borders[bit >> np.uint32(3)] >> (bit & np.uint32(7)).astype(np.uint8)
    return np.asarray(found & np.uint8(1), dtype=np.bool_)


def character_pairs(words: list[str]) -> npt.NDArray[np.uint32]:
    """All different pairs of neighbouring characters within `words`, ascending: uint32 (P, 2)."""
    pairs = {pair for word in words for pair in pairwise(word)}
    return np.array(sorted((ord(a), ord(b)) for a, b in pairs), dtype=np.uint32).reshape(-1, 2)
