"""The numbers of the .cellmd file: constants and limits. `docs/format.md` states the same; a test compares the two."""

from __future__ import annotations

MAGIC = b"CELLM"
VERSION = 2
LEGACY_VERSION = 1

PREFIX_BYTES = 10
"""Magic (5 bytes), version (u8), header length (u32, little-endian); the JSON header follows."""

DATA_ALIGNMENT = 4096
"""The first blob of a version 2 file starts at the first multiple of this after the header."""

BLOB_ALIGNMENT = 64
"""Every blob starts at a multiple of this; in version 2 at the first one after the blob before it."""

# What a reader accepts. Each is checked before memory is taken in proportion to it.
MAX_HEADER_BYTES = 64 << 20
MAX_HEADER_VALUES = 2_000_000
MAX_HEADER_DEPTH = 32
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_DIMENSION = 2**31 - 1
MAX_NAME_LENGTH = 256
MAX_ASSETS = 64
MAX_ASSET_BYTES = 256 << 20

SHA256_HEX_DIGITS = 64
NO_DIGEST = "0" * SHA256_HEX_DIGITS


def aligned(offset: int, alignment: int) -> int:
    """The first multiple of `alignment` at or after `offset`."""
    return -(-offset // alignment) * alignment
