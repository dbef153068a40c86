"""The compiled tokenizer: text to token ids and back, with the results of the `tokenizers` library, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from cellmd.errors import ArgumentError, PromptError
from cellmd.vocabulary.added import AddedTokens
from cellmd.vocabulary.bpe import Merger
from cellmd.vocabulary.layout import ID_BITS
from cellmd.vocabulary.table import Buffer, Table, derived_rank

_MAX_REMEMBERED = 1 << 14


class Vocabulary:
    """A tokenizer read straight from a compiled table. Immutable to its users, and safe to share between threads."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._pipeline = table.pipeline
        self._merger = Merger(table)
        self._raw = AddedTokens(token for token in self._pipeline.added if not token.normalized)
        self._normalized = AddedTokens(token for token in self._pipeline.added if token.normalized)
        self._texts: dict[int, str] = {}
        self._bytes = {token: byte for byte, token in enumerate(table.byte_ids)}
        self._size = table.counts.tokens
        self.special_tokens: dict[int, str] = {t.id: t.content for t in self._pipeline.added if t.special}
        """Id -> name of the special tokens, which `decode` leaves out."""
        self.byte_ids: frozenset[int] = frozenset(table.byte_ids)
        """The tokens that stand for one byte each."""

    @classmethod
    def open(cls, buffer: Buffer) -> Vocabulary:
        """buffer: a table from `compile_vocabulary`, as bytes or as a view of a mapped file, kept and not copied.

        Raises a ContainerError (NotCellmdError, TruncatedError, LayoutError, HeaderError, CorruptError) if it is not
        one or is damaged.
        """
        return cls(Table(buffer))

    def __len__(self) -> int:
        """Number of tokens; ids are 0 to this less one."""
        return self._size

    def encode(self, text: str, *, special: bool = True, add_special_tokens: bool = False) -> list[int]:
        """The token ids of `text`.

        special: special tokens written in the text become those tokens; otherwise they are text like any other.
        add_special_tokens: with what the tokenizer's own template puts around a text (<bos>).
        Raises PromptError if the text holds a lone surrogate.
        """
        pipeline = self._pipeline
        ids = list(pipeline.prefix) if add_special_tokens else []
        try:
            for raw, token in self._raw.split(text, special=special):
                if raw:
                    normal = pipeline.normalizer(raw) if pipeline.normalizer else raw
                    for piece, inner in self._normalized.split(normal, special=special):
                        ids += self._merger.encode(piece)
                        if inner is not None:
                            ids.append(inner.id)
                if token is not None:
                    ids.append(token.id)
        except UnicodeEncodeError as error:
            surrogate = ord(error.object[error.start])
            raise PromptError(
                f"the text is not valid Unicode: it holds the lone surrogate U+{surrogate:04X}; remove it, or "
                "decode its source with errors='replace'"
            ) from error
        if add_special_tokens:
            ids += pipeline.suffix
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Ids beyond the vocabulary give nothing; byte tokens in a row that are not UTF-8 together
        give one U+FFFD each. Raises ArgumentError for what is no id: not an integer, negative, or beyond 32 bits."""
        skipped = self.special_tokens if skip_special else {}
        pieces: list[str] = []
        pending = bytearray()
        for token in ids:
            if token in skipped:
                continue
            byte = self._bytes.get(token)
            if byte is not None:
                pending.append(byte)
                continue
            text = self._texts.get(token)
            if text is None:
                text = self._text(token)
                if text is None:  # beyond the vocabulary: as if it were not there, even between two bytes
                    continue
            if pending:
                pieces.append(_join_bytes(pending))
                pending.clear()
            pieces.append(text)
        if pending:
            pieces.append(_join_bytes(pending))
        return "".join(pieces)

    def token_id(self, token: str) -> int | None:
        """The id of a token as it stands in the vocabulary (a space is U+2581 there), or None."""
        try:
            found = self._table.find(token.encode())
        except UnicodeEncodeError:
            return None
        return found if found >= 0 else None

    def token(self, token_id: int) -> str | None:
        """The token as it stands in the vocabulary, or None if there is no such id."""
        return self._table.text(token_id) if 0 <= token_id < self._size else None

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to decoded text, in UTF-8; a byte token adds its one byte, which may be part of a
        character. Special tokens give their own name. Raises ArgumentError if there is no such id."""
        byte = self._bytes.get(token_id)
        if byte is not None:
            return bytes([byte])
        text = self._text(token_id)
        if text is None:
            raise ArgumentError(f"token id {token_id}: the vocabulary has ids 0 to {self._size - 1}")
        return text.encode()

    def tokenizer_json(self) -> bytes:
        """The tokenizer.json that was compiled, rebuilt: for the `tokenizers` library it means the same."""
        table, content = self._table, dict(self._table.content)
        names = [table.text(token) for token in range(table.counts.model_tokens)]
        model: dict[str, Any] = dict(content["model"])
        model["vocab"] = {name: token for token, name in enumerate(names)}
        model["merges"] = [[left, right] for left, right in self._merges(names, model["vocab"])]
        content["model"] = model
        return json.dumps(content, ensure_ascii=False).encode()

    def _merges(self, names: list[str], ids: dict[str, int]) -> list[tuple[str, str]]:
        """All merges in order of rank."""
        table = self._table
        codes, keys = np.asarray(table.merge_codes), np.asarray(table.merge_keys)
        listed = [divmod(key, 1 << 32) for key in keys[np.argsort(codes >> np.uint64(ID_BITS))].tolist()]
        merges = [(names[left], names[right]) for left, right in listed]
        if table.counts.derived:
            known = set(merges)
            ranked = [
                (derived_rank(0, ids[name], len(name[:cut].encode())), (name[:cut], name[cut:]))
                for name in names
                for cut in range(1, len(name))
                if name[:cut] in ids and name[cut:] in ids
            ]
            merges += [merge for _, merge in sorted(ranked) if merge not in known]
        return merges

    def _text(self, token_id: int) -> str | None:
        """What a token that is not a byte adds to decoded text; None for an id beyond the vocabulary."""
        if not isinstance(token_id, int | np.integer) or not 0 <= token_id < 1 << 32:
            raise ArgumentError(f"token id {token_id!r}: token ids are integers of at least 0 and at most 32 bits")
        text = self.token(int(token_id))
        if text is None:
            return None
        if self._pipeline.detokenizer is not None:
            text = self._pipeline.detokenizer(text)
        if len(self._texts) >= _MAX_REMEMBERED:
            self._texts.clear()
        self._texts[token_id] = text
        return text


def _join_bytes(pending: bytearray) -> str:
    try:
        return pending.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(pending)
