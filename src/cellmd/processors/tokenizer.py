"""Text to token ids and back, through the `tokenizers` library and the model's own tokenizer.json."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

from cellmd.errors import ArgumentError, ContainerError, PromptError


class Tokenizer:
    """The tokenizer of a model. Safe to use from several threads."""

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
    def from_json(cls, data: bytes) -> Tokenizer:
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
