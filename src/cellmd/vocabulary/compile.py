"""tokenizer.json -> the table that `Table` reads. Runs once, when a checkpoint is converted.

The merges of a vocabulary that comes from SentencePiece are all the ways to cut a token into two tokens, ranked by the
token they make and then by the length of the left half. Where that holds, checked here merge by merge, they need no
table: joining two tokens is looking up the joined string. Merges at the head of the list that break the order (runs of
spaces, tabs and newlines) are listed; if the rule does not hold at all (a small BPE vocabulary), all are.
"""

from __future__ import annotations

import json
import re
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmd.errors import CheckpointError, UnsupportedModelError
from cellmd.vocabulary.layout import (
    ID_BITS,
    MAX_PIPELINE_BYTES,
    MAX_SLOT_RUN,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    Counts,
    border_bit,
    character_pairs,
)
from cellmd.vocabulary.pipeline import Pipeline, read_pipeline
from cellmd.vocabulary.table import derived_rank, longest_run

Merge = tuple[str, str]
# What the library's decoder takes for a byte (a sign is admitted where a number is parsed).
_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


def compile_vocabulary(tokenizer_json: bytes) -> bytes:
    """The compiled table of a tokenizer.json; the same input gives the same bytes.

    Raises UnsupportedModelError, naming the feature, if the compiled tokenizer would not give exactly the ids that the
    `tokenizers` library gives (keep the tokenizer.json then), CheckpointError if the file is malformed.
    """
    content = _parse(tokenizer_json)
    vocabulary, merges = _read_model(content)
    content["model"] = {key: value for key, value in content["model"].items() if key not in ("vocab", "merges")}
    pipeline = read_pipeline(content)
    tokens = _all_tokens(vocabulary, pipeline)
    strings = [token.encode() for token in tokens]
    _check_byte_tokens(tokens, vocabulary, merges, pipeline)
    listed, derived = _split_merges(vocabulary, merges)
    keys, codes = _pack_merges(vocabulary, listed)
    slots = _hash_table(strings)
    borders = _border_bits([left + right for left, right in merges])
    description = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    if len(description) > MAX_PIPELINE_BYTES:
        raise UnsupportedModelError(f"tokenizer.json: {len(description)} bytes besides vocabulary and merges")
    counts = Counts(
        tokens=len(strings),
        model_tokens=len(vocabulary),
        slots=len(slots),
        merges=len(keys),
        derived=int(derived),
        border_bits=8 * len(borders),
        pipeline_bytes=len(description),
        string_bytes=sum(map(len, strings)),
    )
    offsets = np.cumsum([0, *map(len, strings)], dtype="<u4")
    parts = {
        "pipeline": description,
        "offsets": offsets.tobytes(),
        "slots": slots.tobytes(),
        "borders": borders.tobytes(),
        "merge_keys": keys.tobytes(),
        "merge_codes": codes.tobytes(),
        "strings": b"".join(strings),
    }
    places = counts.sections()
    table = bytearray(places["strings"].stop)
    header = counts.pack()
    table[: len(header)] = header
    for name, part in parts.items():
        table[places[name]] = part
    return bytes(table)


def _parse(tokenizer_json: bytes) -> dict[str, Any]:
    try:
        content = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"tokenizer.json: not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError("tokenizer.json: not an object with a model")
    return content


def _read_model(content: Mapping[str, Any]) -> tuple[dict[str, int], list[Merge]]:
    """Token -> id, with ids 0..n-1, and the merges in order of rank, each once."""
    vocabulary, merges = content["model"].get("vocab"), content["model"].get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not vocabulary:
        raise UnsupportedModelError("tokenizer.json: model has no vocab and merges of a BPE")
    try:
        ids = array("I", vocabulary.values())
        "".join(vocabulary).encode()
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"tokenizer.json: malformed vocab ({error})") from error
    if sorted(ids) != list(range(len(ids))):
        raise UnsupportedModelError("tokenizer.json: the ids of the vocabulary are not 0, 1, 2, ... without a gap")
    if "" in vocabulary:
        raise UnsupportedModelError("tokenizer.json: the vocabulary holds an empty token")
    # Of a pair that is listed twice, the last rank counts.
    last = {pair: rank for rank, pair in enumerate(_read_merges(merges))}
    for left, right in last:
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(f"tokenizer.json: merge ({left!r}, {right!r}) has parts that are not tokens")
    return vocabulary, sorted(last, key=last.__getitem__)


def _read_merges(merges: Sequence[object]) -> list[Merge]:
    """Merges as pairs of strings, or in the older form as strings with a space between, after a line of the version."""
    if all(isinstance(merge, str) for merge in merges):
        merges = [merge.split(" ") for merge in merges if isinstance(merge, str) and not merge.startswith("#version")]
    pairs = []
    for rank, merge in enumerate(merges):
        if not isinstance(merge, list) or len(merge) != 2 or not all(isinstance(part, str) for part in merge):
            raise CheckpointError(f"tokenizer.json: merge {rank} {merge!r} is not a pair of tokens")
        pairs.append((merge[0], merge[1]))
    return pairs


def _all_tokens(vocabulary: Mapping[str, int], pipeline: Pipeline) -> list[str]:
    """Tokens by id: the model's, then those that were only added, which must have the ids the library gives them."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    seen: set[str] = set()
    for added in pipeline.added:
        if added.content in seen:
            raise UnsupportedModelError(f"tokenizer.json: added token {added.content!r} is listed twice")
        seen.add(added.content)
        expected = vocabulary.get(added.content, len(tokens))
        if added.id != expected:
            raise UnsupportedModelError(
                f"tokenizer.json: added token {added.content!r} has id {added.id}, its place is {expected}"
            )
        if added.content not in vocabulary:
            tokens.append(added.content)
    if len(tokens) > MAX_TOKENS:
        raise UnsupportedModelError(f"tokenizer.json: {len(tokens)} tokens, at most {MAX_TOKENS} are supported")
    if max(len(token.encode()) for token in tokens) > MAX_TOKEN_BYTES:
        raise UnsupportedModelError(f"tokenizer.json: a token is longer than {MAX_TOKEN_BYTES} bytes")
    if any(token >= len(tokens) for token in pipeline.prefix + pipeline.suffix):
        raise UnsupportedModelError("tokenizer.json: post_processor names an id beyond the vocabulary")
    return tokens


def _check_byte_tokens(
    tokens: Sequence[str], vocabulary: Mapping[str, int], merges: Sequence[Merge], pipeline: Pipeline
) -> None:
    """Each byte has its token <0xHH>, no other token decodes as a byte, and no merge starts from one."""
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    missing = sorted(names - vocabulary.keys())
    if missing:
        raise UnsupportedModelError(f"tokenizer.json: byte fallback without the token {missing[0]}")
    for token in tokens:
        shown = pipeline.detokenizer(token) if pipeline.detokenizer else token
        if (token in names) != (_BYTE_TOKEN.fullmatch(shown) is not None) or (token in names and shown != token):
            raise UnsupportedModelError(f"tokenizer.json: {token!r} is not read as a byte as it is written")
    for left, right in merges:
        if left in names or right in names:
            raise UnsupportedModelError(f"tokenizer.json: the merge ({left!r}, {right!r}) joins a byte token")


def _split_merges(vocabulary: Mapping[str, int], merges: Sequence[Merge]) -> tuple[Sequence[Merge], bool]:
    """The merges to list, from the head of the list, and whether the others follow from the vocabulary."""
    possible = sum(
        token[:cut] in vocabulary and token[cut:] in vocabulary for token in vocabulary for cut in range(1, len(token))
    )
    if possible != len(merges):  # every merge is among the possible ones, so equal numbers mean the same merges
        return merges, False
    ranks = [derived_rank(0, vocabulary[left + right], len(left.encode())) for left, right in merges]
    start = len(ranks)
    while start and (start == len(ranks) or ranks[start - 1] < ranks[start]):
        start -= 1
    return merges[:start], True


def _pack_merges(
    vocabulary: Mapping[str, int], listed: Sequence[Merge]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """(keys `left << 32 | right`, codes `rank << 20 | id`), both uint64 (M,), by ascending key."""
    packed = sorted(
        (vocabulary[left] << 32 | vocabulary[right], rank << ID_BITS | vocabulary[left + right])
        for rank, (left, right) in enumerate(listed)
    )
    columns = np.array(packed, dtype="<u8").reshape(-1, 2)
    return columns[:, 0].copy(), columns[:, 1].copy()


def _hash_table(strings: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """Open addressing, linear probing, at most half full: uint32 (slots,), each 0 or `crc32 >> 20 << 20 | id + 1`."""
    size = 1 << max(9, (2 * len(strings) - 1).bit_length())
    while True:
        slots = array("I", bytes(4 * size))
        for token, string in enumerate(strings):
            digest = zlib.crc32(string)
            place = digest & (size - 1)
            while slots[place]:
                place = (place + 1) & (size - 1)
            slots[place] = digest >> ID_BITS << ID_BITS | (token + 1)
        table = np.array(slots, dtype="<u4")
        if longest_run(table) <= MAX_SLOT_RUN:
            return table
        size *= 2


def _border_bits(merged: list[str]) -> npt.NDArray[np.uint8]:
    """One bit for each pair of characters that some merge joins, at least 16 bits of room a pair: uint8 (bits / 8,)."""
    pairs = character_pairs(merged)
    bits = 1 << max(10, (16 * len(pairs)).bit_length())
    borders = np.zeros(bits // 8, dtype=np.uint8)
    bit = border_bit(pairs[:, 0], pairs[:, 1], bits)
    np.bitwise_or.at(borders, bit >> 3, np.uint8(1) << (bit & 7).astype(np.uint8))
    return borders
