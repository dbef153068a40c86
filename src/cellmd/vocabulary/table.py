"""A compiled vocabulary read where it lies: nothing is copied, no dictionary of the tokens is built.

Opening checks everything that later reading relies on: sizes, offsets, the hash table, the listed merges. After that a
damaged table may give wrong tokens (the container's checksum is there to tell), never a crash or a long loop.
"""

from __future__ import annotations

import json
import mmap
import zlib
from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmd.errors import (
    CheckpointError,
    CorruptError,
    HeaderError,
    LayoutError,
    NotCellmdError,
    TruncatedError,
    UnsupportedModelError,
)
from cellmd.vocabulary.layout import (
    HEADER_BYTES,
    ID_BITS,
    MAGIC,
    MAX_PIPELINE_BYTES,
    MAX_SLOT_RUN,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    VERSION,
    Counts,
)
from cellmd.vocabulary.pipeline import Pipeline, read_pipeline

Buffer = bytes | bytearray | memoryview | mmap.mmap
_ID_MASK = (1 << ID_BITS) - 1


class Table:
    """Look-ups in a compiled vocabulary. Immutable, and safe to read from several threads."""

    def __init__(self, buffer: Buffer) -> None:
        """buffer: the whole table (bytes, or a view of a mapped file); it must stay valid and unchanged.

        Raises NotCellmdError, TruncatedError, LayoutError, HeaderError or CorruptError.
        """
        view = memoryview(buffer).cast("B")
        counts = _read_counts(view)
        section = {name: view[where] for name, where in counts.sections().items()}
        self.counts = counts
        self.content: dict[str, Any]
        """The tokenizer.json that was compiled, without `model.vocab` and `model.merges`."""
        self.content, self.pipeline = _read_pipeline(bytes(section["pipeline"]))
        self.borders: npt.NDArray[np.uint8] = np.frombuffer(section["borders"], dtype=np.uint8)
        self.strings = section["strings"]
        self.offsets = section["offsets"].cast("I")
        self.merge_keys = section["merge_keys"].cast("Q")
        self.merge_codes = section["merge_codes"].cast("Q")
        self._slots = section["slots"].cast("I")
        self._slot_mask = counts.slots - 1
        self._derived = bool(counts.derived)
        self._check_strings()
        self._check_slots()
        self._check_merges()
        self._check_pipeline()
        self.byte_ids = tuple(self._byte_id(byte) for byte in range(256))
        """The id of the token that stands for each byte."""

    def string(self, token: int) -> bytes:
        """The UTF-8 bytes of token `token` (in range) as it stands in the vocabulary."""
        offsets = self.offsets
        return bytes(self.strings[offsets[token] : offsets[token + 1]])

    def text(self, token: int) -> str:
        """The same as text. Raises CorruptError if it is not UTF-8."""
        try:
            return self.string(token).decode()
        except UnicodeDecodeError as error:
            raise CorruptError(f"vocabulary table: token {token} is not UTF-8; convert the model again") from error

    def find(self, string: bytes) -> int:
        """The id of the token with these bytes, or -1."""
        slots, offsets, mask = self._slots, self.offsets, self._slot_mask
        digest = zlib.crc32(string)
        place, tag = digest & mask, digest >> ID_BITS
        while slot := slots[place]:
            if slot >> ID_BITS == tag:
                token = (slot & _ID_MASK) - 1
                if self.strings[offsets[token] : offsets[token + 1]] == string:
                    return token
            place = (place + 1) & mask
        return -1

    def merge(self, left: int, right: int) -> int:
        """What joining two neighbouring tokens gives, or -1 if they do not join.

        The result is `rank << 20 | id`: of two possible merges, the smaller number comes first.
        """
        key = left << 32 | right
        place = bisect_left(self.merge_keys, key)
        if place < len(self.merge_keys) and self.merge_keys[place] == key:
            return self.merge_codes[place]
        if not self._derived:
            return -1
        head = self.string(left)
        token = self.find(head + self.string(right))
        if not 0 <= token < self.counts.model_tokens:
            return -1
        return derived_rank(self.counts.merges, token, len(head)) << ID_BITS | token

    def _byte_id(self, byte: int) -> int:
        token = self.find(b"<0x%02X>" % byte)
        if not 0 <= token < self.counts.model_tokens:
            raise CorruptError(f"vocabulary table: the token of byte 0x{byte:02X} is missing; convert the model again")
        return token

    def _check_strings(self) -> None:
        offsets = np.asarray(self.offsets)
        lengths = np.diff(offsets)  # unsigned: a step back becomes huge
        if offsets[0] != 0 or offsets[-1] != len(self.strings) or lengths.min() < 1 or lengths.max() > MAX_TOKEN_BYTES:
            raise LayoutError("vocabulary table: token offsets do not ascend over the strings; convert the model again")

    def _check_slots(self) -> None:
        slots, tokens = np.asarray(self._slots), self.counts.tokens
        ids = slots & np.uint32(_ID_MASK)
        if np.count_nonzero(slots) != tokens or np.count_nonzero(ids) != tokens or ids.max() > tokens:
            raise CorruptError("vocabulary table: the hash table does not fit the tokens; convert the model again")
        if longest_run(slots) > MAX_SLOT_RUN:
            raise CorruptError("vocabulary table: the hash table is clustered; convert the model again")

    def _check_merges(self) -> None:
        if not self.counts.merges:
            return
        keys, codes = np.asarray(self.merge_keys), np.asarray(self.merge_codes)
        highest = max(int((keys >> np.uint64(32)).max()), int((keys & np.uint64(0xFFFFFFFF)).max()))
        highest = max(highest, int((codes & np.uint64(_ID_MASK)).max()))
        rank = int((codes >> np.uint64(ID_BITS)).max())
        if np.any(keys[1:] <= keys[:-1]) or highest >= self.counts.model_tokens or rank >= self.counts.merges:
            raise CorruptError("vocabulary table: the listed merges are out of range; convert the model again")

    def _check_pipeline(self) -> None:
        pipeline, size = self.pipeline, self.counts.tokens
        for token in pipeline.added:
            if token.id >= size or self.string(token.id) != token.content.encode():
                raise CorruptError(f"vocabulary table: added token {token.content!r} is not token {token.id}")
        if any(token >= size for token in pipeline.prefix + pipeline.suffix):
            raise CorruptError("vocabulary table: the template names a token beyond the vocabulary")


def derived_rank(n_listed: int, token: int, left_bytes: int) -> int:
    """The rank of a merge that is not listed: after all listed ones, by the id of what it makes, longest left first."""
    return n_listed + (token << 12) + MAX_TOKEN_BYTES - left_bytes


def longest_run(slots: npt.NDArray[np.uint32]) -> int:
    """The length of the longest run of occupied slots, round the end too. `slots` (uint32) has an empty one."""
    empty = np.flatnonzero(slots == 0)
    return int(np.diff(empty, append=empty[0] + len(slots)).max()) - 1


def _read_counts(view: memoryview) -> Counts:
    if len(view) < HEADER_BYTES:
        raise TruncatedError(f"vocabulary table: {len(view)} bytes, the header alone has {HEADER_BYTES}")
    magic, version, counts = Counts.unpack(bytes(view[:HEADER_BYTES]))
    if magic != MAGIC:
        raise NotCellmdError(f"vocabulary table: begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise NotCellmdError(f"vocabulary table: version {version}, this release reads {VERSION}; update cellmd")
    sane = (
        256 <= counts.model_tokens <= counts.tokens <= MAX_TOKENS
        and counts.tokens < counts.slots <= 1 << 24 and counts.slots.bit_count() == 1
        and 8 <= counts.border_bits <= 1 << 31 and counts.border_bits.bit_count() == 1
        and counts.derived <= 1 and counts.pipeline_bytes <= MAX_PIPELINE_BYTES
    )  # fmt: skip
    if not sane:
        raise HeaderError(f"vocabulary table: impossible counts {counts}; convert the model again")
    end = counts.sections()["strings"].stop
    if len(view) < end:
        raise TruncatedError(f"vocabulary table: {len(view)} bytes of {end}; convert the model again")
    if len(view) > end:
        raise LayoutError(f"vocabulary table: {len(view) - end} bytes after its end; convert the model again")
    return counts


def _read_pipeline(raw: bytes) -> tuple[dict[str, Any], Pipeline]:
    try:
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise CheckpointError("not an object")
        return content, read_pipeline(content)
    except (ValueError, RecursionError, UnsupportedModelError, CheckpointError) as error:
        raise HeaderError(
            f"vocabulary table: its pipeline cannot be used ({error}); convert the model again"
        ) from error
