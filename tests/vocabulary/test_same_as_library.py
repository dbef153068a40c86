"""The compiled tokenizer gives what the `tokenizers` library gives: on any text, and on any ids back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cellmd.errors import ArgumentError, PromptError
from cellmd.vocabulary import Vocabulary

Both = tuple[Tokenizer, Vocabulary]

FRAGMENTS = [
    # Special tokens of the tokenizers at hand, whole, broken, and one inside another.
    "<bos>", "<|turn>", "<turn|>", "<|image|>", "<|\"|>", "<|tool_call>", "<|", "|>", "<|turn", "turn|>", "<", ">", "|",
    "<<|turn>>", "<bos", "<|<|turn>", "<a>", "<a>b", "<a|", "<a", "▁<|a", "<|a", "<unused7>", "<tr>", "<h1>",
    "[multimodal]",
    # Spaces of every kind, and what a space becomes.
    " ", "  ", "▁", "▁▁", "\n", "\n\n", "\n\n\n", "\t", "\r\n", "\u00a0", "\u2003", "\u200b", "\u3000", "\ufeff",
    # Byte tokens written out, and characters that fall back to bytes.
    "<0x41>", "<0x0A>", "\x00", "\x07", "\x1b[31m", "\x7f", "\ue000", "\U000fffff", "\U0010ffff", "\ufffd", "\ufffe",
    # Combining marks, emoji sequences, flags, scripts from right to left, and without spaces.
    "e\u0301", "\u0301", "\u0e33", "ﬁ", "👩‍👩‍👧‍👦", "🇨🇭", "👍🏽", "☺️", "שלום", "مرحبا بالعالم", "\u202e", "नमस्ते",
    "你好世界", "こんにちは", "한국어", "ไทย", "𝔘𝔫𝔦", "Ωμέγα", "Привет",
    # Words, numbers, code.
    "the", " the", "The user", "model", "don't", "transcribe", "naïve", "aaaa", "abab", "ab", "ba", "b", "0",
    "1234567890", "3.14", "-1e-5", "def f(x):\n    return x", "</code>", "https://example.org/a?b=c&d",
    "{\"a\": [1, 2]}", "\\n", "::", "....",
]  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.one_of(
            st.sampled_from(FRAGMENTS),
            st.text(max_size=6),
            st.builds(lambda fragment, times: fragment * times, st.sampled_from(FRAGMENTS), st.integers(2, 40)),
        ),
        max_size=12,
    ).map("".join),
)


def library_ids(library: Tokenizer, text: str, **options: bool) -> list[int]:
    return list(library.encode(text, add_special_tokens=options.get("add_special_tokens", False)).ids)


@settings(max_examples=400, deadline=None)
@given(text=TEXT, with_bos=st.booleans())
def test_encodes_any_text(pair: Both, text: str, with_bos: bool) -> None:
    library, compiled = pair
    assert compiled.encode(text, add_special_tokens=with_bos) == library_ids(library, text, add_special_tokens=with_bos)


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_special_tokens_as_plain_text(pair: Both, text: str) -> None:
    library, compiled = pair
    library.encode_special_tokens = True
    try:
        assert compiled.encode(text, special=False) == library_ids(library, text)
    finally:
        library.encode_special_tokens = False


@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_decodes_any_ids(pair: Both, data: st.DataObject, skip: bool) -> None:
    library, compiled = pair
    byte_ids = [compiled.token_id(f"<0x{byte:02X}>") for byte in range(256)]
    token = st.one_of(
        st.integers(0, len(compiled) + 3),
        st.sampled_from(byte_ids),
        st.sampled_from(sorted(compiled.special_tokens)),
    )
    character = st.characters(codec="utf-8").map(lambda c: [byte_ids[byte] for byte in c.encode()])
    groups = st.lists(st.one_of(st.lists(token, max_size=6), character), max_size=8)
    ids = [i for group in data.draw(groups) for i in group]
    assert compiled.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


def test_every_token_by_id_and_by_name(pair: Both) -> None:
    library, compiled = pair
    assert len(compiled) == library.get_vocab_size()
    names = [compiled.token(i) for i in range(len(compiled))]
    assert {name: i for i, name in enumerate(names)} == library.get_vocab()
    assert all(compiled.token_id(name) == i for i, name in enumerate(names))
    assert compiled.token_id("no such token") is None
    assert compiled.token_id("\ud800") is None
    specials = {i: token.content for i, token in library.get_added_tokens_decoder().items() if token.special}
    assert compiled.special_tokens == specials


def test_every_token_alone_and_between_letters(pair: Both) -> None:
    """Of 262,144 tokens every 13th, so that the whole takes seconds."""
    library, compiled = pair
    for i in range(0, len(compiled), 13 if len(compiled) > 10_000 else 1):
        name = compiled.token(i)
        for text in (name, f"a{name}b", name.replace("▁", " ")):
            assert compiled.encode(text) == library_ids(library, text), text


def test_token_bytes_add_up_to_the_text(pair: Both) -> None:
    _, compiled = pair
    text = "<bos> naïve 👩‍👩‍👧‍👦 \ue000▁ab\n"
    ids = compiled.encode(text)
    assert b"".join(map(compiled.token_bytes, ids)).decode() == compiled.decode(ids, skip_special=False)
    for i in range(0, len(compiled), 101):
        alone = compiled.token_bytes(i)
        assert len(alone) == 1 if i in compiled.byte_ids else alone.decode() == compiled.decode([i], skip_special=False)


LONG = {
    "one letter": "a" * 100_000,
    "spaces": " " * 100_000,
    "newlines": "\n" * 100_000,
    "what a space becomes": "▁" * 100_000,
    "two letters": "ab" * 50_000,
    "no border anywhere": "etaoinshrdlu" * 8_000,
    "bytes": "\ue000" * 30_000,
    "almost special": "<|turn" * 20_000,
    "specials": "<bos>" * 20_000,
    "zero width joiners": "👩‍" * 30_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_runs_take_time_in_proportion(pair: Both, name: str) -> None:
    library, compiled = pair
    started = time.perf_counter()
    found = compiled.encode(LONG[name])
    assert time.perf_counter() - started < 5  # a quadratic way would take an hour
    assert found == library_ids(library, LONG[name])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "<bos>\udcff", "\ud83d\ude00"])
def test_lone_surrogates_are_refused(pair: Both, text: str) -> None:
    library, compiled = pair
    with pytest.raises(TypeError):
        library.encode(text)
    with pytest.raises(PromptError, match=r"not valid Unicode.* U\+D[0-9A-F]{3}"):
        compiled.encode(text)


def test_ids_out_of_range(pair: Both) -> None:
    library, compiled = pair
    e_acute = [compiled.token_id("<0xC3>"), compiled.token_id("<0xA9>")]
    for ids in ([len(compiled), 2**32 - 1], [e_acute[0], len(compiled), e_acute[1]]):
        assert compiled.decode(ids) == library.decode(ids)
    wrong: list[list[Any]] = [[-1], [2**32], ["a"], [None], [1.5]]
    for ids in wrong:
        with pytest.raises((OverflowError, TypeError)):
            library.decode(ids)
        with pytest.raises(ArgumentError, match="token id"):
            compiled.decode(ids)
    for beyond in (-1, len(compiled)):
        assert compiled.token(beyond) is None
        with pytest.raises(ArgumentError, match="token id"):
            compiled.token_bytes(beyond)


def test_tokens_that_were_only_added_are_not_the_models(
    build: Callable[..., bytes], compare: Callable[[bytes], Both]
) -> None:
    """Left as text they are neither a character's token nor what a merge makes, though they have the right name."""
    pieces = ["a", "b", "ab", "aba"]  # so that a merge may join "b" and "a"
    first = 257 + len(pieces)
    library, compiled = compare(
        build(pieces, added=[{"id": first, "content": "ba"}, {"id": first + 1, "content": "é"}])
    )
    library.encode_special_tokens = True
    for text in ("ba", "é", "éba", "bba"):
        found = compiled.encode(text, special=False)
        assert found == library_ids(library, text)
        assert max(found) < first


LETTERS = st.sampled_from(["a", "b", "c", "▁", "é", "\n"])
PIECES = st.lists(st.lists(LETTERS, min_size=1, max_size=5).map("".join), min_size=1, max_size=40, unique=True)


@settings(max_examples=300, deadline=None)
@given(
    pieces=PIECES, data=st.data(), text=st.lists(st.sampled_from([*"abcé\n", " ", "▁", "x"]), max_size=40).map("".join)
)
def test_any_vocabulary_and_merges(
    build: Callable[..., bytes], compare: Callable[[bytes], Both], pieces: list[str], data: st.DataObject, text: str
) -> None:
    """Small crowded vocabularies, where every rule of precedence is met: all cuts in SentencePiece's order, or any
    subset of them in any order."""
    known = {*pieces}
    cuts = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if p[:i] in known and p[i:] in known]
    kind = data.draw(st.sampled_from(["all", "subset", "shuffled", "head"]))
    merges = None
    if kind == "subset":
        merges = data.draw(st.lists(st.sampled_from(cuts), max_size=30)) if cuts else []
    elif kind == "shuffled":
        merges = data.draw(st.permutations(cuts))
    elif kind == "head":
        first = data.draw(st.lists(st.sampled_from(cuts), max_size=4, unique=True)) if cuts else []
        ordered = sorted(cuts, key=lambda cut: (pieces.index("".join(cut)), -len(cut[0])))
        merges = first + [cut for cut in ordered if cut not in first]
    library, compiled = compare(build(pieces, merges))
    assert compiled.encode(text) == library_ids(library, text)
