"""Answers in a given form: JSON of a schema, a regular expression, one of some texts, a grammar, calls of tools.

The form is a grammar of llguidance, which says after every token which tokens may follow.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np

from cellmd.errors import ArgumentError, BackendError
from cellmd.processors.tokenizer import Tokenizer
from cellmd.processors.tool_calls import QUOTE
from cellmd.server.call_grammar import call_grammar, names_alone
from cellmd.server.formats import without_other_formats

_MOST_CHARACTERS = 256 << 10


class Grammars:
    """Makes constraints for one tokenizer; safe to use from several threads. n_vocab: width of the logits."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, end_id: int) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._end_id = end_id
        self._library: Any = None
        self._making = threading.Lock()

    def json_schema(self, schema: Mapping[str, Any]) -> GrammarConstraint:
        text = _bounded(json.dumps(without_other_formats(schema)))
        overrides: Any = {"whitespace_flexible": False}
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=overrides)
        except ValueError as error:
            raise ArgumentError(f"the JSON schema cannot be used: {error}") from None
        return self._constraint(grammar, "JSON schema")

    def regex(self, pattern: str) -> GrammarConstraint:
        return self._constraint(llguidance.LLMatcher.grammar_from_regex(_bounded(pattern)), "regular expression")

    def choice(self, choices: Sequence[str]) -> GrammarConstraint:
        if not all(choices):
            raise ArgumentError("a choice must not be empty")
        return self.lark("start: " + " | ".join(json.dumps(choice) for choice in choices))

    def lark(self, grammar: str) -> GrammarConstraint:
        return self._constraint(llguidance.LLMatcher.grammar_from_lark(_bounded(grammar)), "grammar")

    def tool_calls(
        self, functions: Sequence[Mapping[str, Any]], *, several: bool, strict: bool = True
    ) -> GrammarConstraint:
        """One call of one of the functions, or several, with arguments of their schemas. strict: see `call_grammar`."""
        ids = {name: self._tokenizer.token_id(name) for name in ("<|tool_call>", "<tool_call|>", QUOTE)}
        if None in ids.values():
            raise ArgumentError("this model's vocabulary has no tokens for tool calls")
        begin, end, quote = (f"<[{number}]>" for number in ids.values())

        def of(functions: Sequence[Mapping[str, Any]]) -> GrammarConstraint:
            return self.lark(call_grammar(functions, begin, end, quote, several=several, strict=strict))

        try:
            return of(functions)
        except ArgumentError:
            if strict or any(function.get("strict") for function in functions):
                raise
            return of([{**function, "parameters": names_alone(function.get("parameters"))} for function in functions])

    def _constraint(self, grammar: str, what: str) -> GrammarConstraint:
        matcher = llguidance.LLMatcher(self._tokens(), grammar, log_level=0)
        if matcher.is_error():
            raise ArgumentError(f"the {what} cannot be used: {matcher.get_error()[:500]}")
        return GrammarConstraint(matcher, self._n_vocab)

    def _tokens(self) -> Any:
        """llguidance's view of the vocabulary, made at first use."""
        with self._making:
            if self._library is None:
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._n_vocab, self._end_id))
                self._library = llguidance.LLTokenizer(wrapper, n_vocab=self._n_vocab)
        return self._library


class GrammarConstraint:
    """A `cellmd.runtime.answering.Constraint`: where one answer stands in its grammar."""

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    def allowed(self) -> np.ndarray:
        if self._matcher.is_stopped():
            return np.zeros(self._n_vocab, dtype=bool)
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
        self._check()
        result = np.zeros(self._n_vocab, dtype=bool)
        n = min(len(allowed), self._n_vocab)
        result[:n] = allowed[:n]
        return result

    def may_end(self) -> bool:
        return bool(self._matcher.is_accepting())

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def copy(self) -> GrammarConstraint:
        return GrammarConstraint(self._matcher.deep_copy(), self._n_vocab)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BackendError(f"the answer's form became too complex: {self._matcher.get_error()[:300]}")


class _Vocabulary:
    """What llguidance asks of a tokenizer. Special tokens are no text: no form can spell them."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, end_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_id
        self.bos_token_id = None
        self.special_token_ids = sorted(token for token in tokenizer.special_tokens if token < n_vocab)
        self.tokens = [self._bytes(token) for token in range(n_vocab)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode(), special=False)

    def _bytes(self, token: int) -> bytes:
        name = self._tokenizer.token(token)
        if name is None:
            return b""
        if token in self._tokenizer.byte_ids:
            return bytes([int(name[3:5], 16)])
        return name.encode() if token in self._tokenizer.special_tokens else name.replace("▁", " ").encode()


def _bounded(text: str) -> str:
    if len(text) > _MOST_CHARACTERS:
        raise ArgumentError(f"the answer's form has {len(text):,} characters; at most {_MOST_CHARACTERS:,} are taken")
    return text
