"""Text to ids and back, whole and in pieces: with the small vocabulary, compiled and through the library, and, where it
lies, with E2B's."""

from __future__ import annotations

import re
import threading
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellmd.errors import ArgumentError, ContainerError, PromptError
from cellmd.processors.tokenizer import LibraryTokenizer, StreamDecoder, Tokenizer
from processors.folders import TOKENIZERS, processor_of, small_folder

LIBRARY = "small, through the library"
tokenizers_at_hand = pytest.mark.parametrize("name", [*TOKENIZERS, LIBRARY])
small_at_hand = pytest.mark.parametrize("name", ["small", LIBRARY])
MARKERS = ["<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<|image|>", '<|"|>']


@cache
def tokenizer_of(name: str) -> Tokenizer:
    if name == LIBRARY:
        return LibraryTokenizer.from_json((small_folder() / "tokenizer.json").read_bytes())
    return processor_of(name).tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special=skip_special)
    return [*(decoder.feed(token_id) for token_id in ids), decoder.flush()]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Sequences rich in byte tokens and special tokens, and a few ids beyond the vocabulary."""
    byte = st.sampled_from(sorted(tokenizer.byte_ids))
    special = st.sampled_from(sorted(tokenizer.special_tokens))
    character = st.characters(codec="utf-8").map(lambda c: [tokenizer.token_id(f"<0x{b:02X}>") for b in c.encode()])
    any_id = st.integers(0, len(tokenizer) + 10)
    part = st.one_of(any_id.map(lambda i: [i]), byte.map(lambda i: [i]), special.map(lambda i: [i]), character)
    return st.lists(part, max_size=30).map(lambda parts: [int(i) for part in parts for i in part if i is not None])


@tokenizers_at_hand
@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_the_pieces_of_a_stream_are_the_whole(name: str, data: st.DataObject, skip_special: bool) -> None:
    tokenizer = tokenizer_of(name)
    ids = data.draw(ids_of(tokenizer))
    whole = tokenizer.decode(ids, skip_special=skip_special)
    assert "".join(pieces(tokenizer, ids, skip_special=skip_special)) == whole


@tokenizers_at_hand
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
@example(text="a <bos> of text, and <|turn>")
def test_text_comes_back_and_no_character_is_split(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode(text, special=False)
    text = text.replace("\u2581", " ")  # the vocabulary's own sign for a space
    assert tokenizer.decode(ids) == text
    parts = pieces(tokenizer, ids, skip_special=True)
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@tokenizers_at_hand
def test_a_stream_shows_no_marker(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("<|turn>model\nhello<turn|>")
    assert pieces(tokenizer, ids, skip_special=True)[0] == ""
    assert "".join(pieces(tokenizer, ids, skip_special=True)) == "model\nhello"
    assert "".join(pieces(tokenizer, ids, skip_special=False)) == "<|turn>model\nhello<turn|>"


@tokenizers_at_hand
@pytest.mark.parametrize("marker", MARKERS)
def test_markers_are_special_or_text_as_asked(name: str, marker: str) -> None:
    tokenizer = tokenizer_of(name)
    token_id = tokenizer.token_id(marker)
    assert token_id is not None
    assert tokenizer.encode(f"a{marker}b")[1:-1].count(token_id) == 1
    as_text = tokenizer.encode(f"a{marker}b", special=False)
    assert not tokenizer.special_tokens.keys() & set(as_text)
    assert tokenizer.decode(as_text) == f"a{marker}b"
    assert tokenizer.token(token_id) == marker


@tokenizers_at_hand
def test_byte_tokens_are_all_known(name: str) -> None:
    tokenizer = tokenizer_of(name)
    names = {i: tokenizer.token(i) or "" for i in range(len(tokenizer))}
    assert tokenizer.byte_ids == {i for i, text in names.items() if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text)}
    assert len(tokenizer.byte_ids) == 256


@small_at_hand
def test_threads_do_not_disturb_each_other(name: str) -> None:
    """Whether markers are special is a switch of the library's tokenizer, which two threads share; the compiled one
    shares what it remembers."""
    tokenizer = tokenizer_of(name)
    expected = {special: tokenizer.encode("<|turn>user", special=special) for special in (True, False)}
    wrong: list[bool] = []

    def encode(special: bool) -> None:
        wrong.extend(
            special for _ in range(300) if tokenizer.encode("<|turn>user", special=special) != expected[special]
        )

    threads = [threading.Thread(target=encode, args=(special,)) for special in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("data", [b"", b"{}", b"no json", b'{"model": {"type": "Unknown"}}', b"\xff\xfe"])
def test_what_is_no_tokenizer(data: bytes) -> None:
    with pytest.raises(ContainerError, match=r"tokenizer\.json"):
        LibraryTokenizer.from_json(data)


@small_at_hand
def test_what_cannot_be_encoded_or_decoded(name: str) -> None:
    tokenizer = tokenizer_of(name)
    with pytest.raises(PromptError, match="Unicode"):
        tokenizer.encode("half a pair: \ud800")
    for ids in ([-1], [2**40], ["a"]):
        with pytest.raises(ArgumentError):
            tokenizer.decode(ids)  # type: ignore[arg-type]
