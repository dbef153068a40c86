"""Text to token ids and back: through the compiled vocabulary, or the `tokenizers` library and a tokenizer.json."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cellmd.errors import ArgumentError, ContainerError, PromptError
from cellmd.vocabulary import VOCABULARY_ASSET, Vocabulary


class Tokenizer(Protocol):
    """The tokenizer of a model. Safe to use from several threads.

    special_tokens: id -> name. byte_ids: the tokens that stand for one byte each.
    """

    special_tokens: dict[int, str]
    byte_ids: frozenset[int]

    def __len__(self) -> int: ...

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; nothing is put before or after. Raises PromptError for what is not valid Unicode.

        special: strings such as `<turn|>` become the special tokens they name; otherwise they are text like any other.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids. Bytes that make no character become U+FFFD, ids outside the vocabulary nothing.
        Raises ArgumentError for what is no token id."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name in the vocabulary."""
        ...

    def token(self, token_id: int) -> str | None:
        """The name of a token in the vocabulary."""
        ...


def open_tokenizer(assets: Mapping[str, bytes | memoryview]) -> Tokenizer:
    """From a file's assets by name: the compiled vocabulary if there is one, else tokenizer.json.

    Raises ContainerError if there is neither, or what there is cannot be read.
    """
    if VOCABULARY_ASSET in assets:
        return Vocabulary.open(assets[VOCABULARY_ASSET])
    if "tokenizer.json" in assets:
        return LibraryTokenizer.from_json(bytes(assets["tokenizer.json"]))
    raise ContainerError(f"the file holds neither {VOCABULARY_ASSET} nor tokenizer.json, so it cannot make prompts")


class LibraryTokenizer:
    """A `Tokenizer` through the `tokenizers` library, for files of version 1 and pipelines that are not compiled."""

    def __init__(self, backend: Any) -> None:
        """backend: a `tokenizers.Tokenizer`; see `from_json`."""
        self._backend = backend
        self._encoding = threading.Lock()
        added = backend.get_added_tokens_decoder()
        self.special_tokens: dict[int, str] = {i: token.content for i, token in added.items() if token.special}
        hexadecimal = "0123456789abcdefABCDEF"
        names = ("<0x" + high + low + ">" for high, low in itertools.product(hexadecimal, repeat=2))
        ids = (backend.token_to_id(name) for name in names)
        self.byte_ids: frozenset[int] = frozenset(i for i in ids if i is not None)

    @classmethod
    def from_json(cls, data: bytes) -> LibraryTokenizer:
        """Read the content of a tokenizer.json. Raises ContainerError if it is none."""
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_buffer(data))
        except Exception as error:  # the library has no error class of its own
            raise ContainerError(f"tokenizer.json cannot be read: {error}") from error

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; nothing is put before or after.

        special: strings such as `<turn|>` become the special tokens they name; otherwise they are text like any other.
        """
        try:
            with self._encoding:  # the switch belongs to the tokenizer, not to the call
                self._backend.encode_special_tokens = not special
                return list(self._backend.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeError) as error:  # half of a surrogate pair, which UTF-8 cannot carry
            raise PromptError(f"text that is not valid Unicode cannot be tokenized: {error}") from None

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids. Bytes that make no character become U+FFFD, ids outside the vocabulary nothing."""
        try:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))
        except (OverflowError, TypeError) as error:
            raise ArgumentError(f"token ids must be integers of at least 0: {error}") from None

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name in the vocabulary."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def token(self, token_id: int) -> str | None:
        """The name of a token in the vocabulary."""
        found = self._backend.id_to_token(token_id)
        return None if found is None else str(found)


class StreamDecoder:
    """Text of a growing sequence of token ids, in pieces that never split a character.

    The pieces put together are `tokenizer.decode` of all ids. A character that the vocabulary does not know comes as a
    run of byte tokens, whose text is certain only when the run is over: until then it is held back.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._bytes: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that one more token makes certain; may be empty."""
        if token_id in self._tokenizer.byte_ids:
            self._bytes.append(token_id)
            return ""
        if self._skip_special and token_id in self._tokenizer.special_tokens:
            return ""  # and the run goes on: `decode` takes special tokens away first, too
        text = self._tokenizer.decode([token_id], skip_special=self._skip_special)
        return self.flush() + text if text or self._tokenizer.token(token_id) is not None else ""

    def flush(self) -> str:
        """What was held back: to be called at the end."""
        run, self._bytes = self._bytes, []
        return self._tokenizer.decode(run) if run else ""
