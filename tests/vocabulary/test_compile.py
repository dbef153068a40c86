"""What is compiled, how compactly, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from cellmd.errors import CheckpointError, UnsupportedModelError
from cellmd.vocabulary import Vocabulary, compile_vocabulary
from cellmd.vocabulary.table import Table

Build = Callable[..., bytes]


def test_the_same_input_gives_the_same_bytes(raw: bytes, compiled_table: bytes) -> None:
    assert compile_vocabulary(raw) == compiled_table


def test_the_original_can_be_rebuilt(raw: bytes, pair: tuple[Tokenizer, Vocabulary]) -> None:
    rebuilt = json.loads(pair[1].tokenizer_json())
    original = json.loads(raw)
    assert rebuilt == original


def test_a_large_vocabulary_is_compact(compiled_table: bytes) -> None:
    counts = Table(compiled_table).counts
    assert counts.slots <= 4 * max(counts.tokens, 256)
    if counts.tokens > 100_000:  # Gemma 4: of 514,906 merges all but those of white space follow from the vocabulary
        assert counts.derived == 1
        assert counts.merges < 2_000
        assert len(compiled_table) < 6_000_000


def test_merges_that_follow_from_the_vocabulary_are_not_listed(build: Build) -> None:
    pieces = ["a", "b", "ab", "aab", "aa"]
    cuts = [("a", "b"), ("aa", "b"), ("a", "ab"), ("a", "a")]
    assert Table(compile_vocabulary(build(pieces))).counts.merges == 0
    assert Table(compile_vocabulary(build(pieces, cuts))).counts.merges == 0
    assert Table(compile_vocabulary(build(pieces, [cuts[3], *cuts[:3]]))).counts.merges == 1
    assert Table(compile_vocabulary(build(pieces, cuts[:3]))).counts.merges == 3


def test_merges_in_the_older_form(build: Build) -> None:
    pieces, merges = ["a", "b", "c", "ab", "bc"], [("b", "c"), ("a", "b")]
    older = build(pieces, model={"merges": ["#version: 0.2", *(" ".join(merge) for merge in merges)]})
    for form in (older, build(pieces, merges)):
        ids = Vocabulary.open(compile_vocabulary(form)).encode("abc")
        assert ids == list(Tokenizer.from_str(form.decode()).encode("abc", add_special_tokens=False).ids)


def test_template_on_both_sides(build: Build) -> None:
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ends = {"x": {"id": "x", "ids": [0, 5], "tokens": ["<bos>", "<0x04>"]}}
    template = {"type": "TemplateProcessing", "single": [*single, single[0]], "pair": [], "special_tokens": ends}
    vocabulary = Vocabulary.open(compile_vocabulary(build(["a"], post_processor=template)))
    assert vocabulary.encode("a", add_special_tokens=True) == [0, 5, 257, 0, 5]
    assert vocabulary.encode("a") == [257]


SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {"x": {"ids": [0]}, "far": {"ids": [999]}}}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
UNSUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "another model": ("model.type", {"model": {"type": "Unigram"}}),
    "dropout": ("dropout", {"model": {"dropout": 0.1}}),
    "prefix": ("continuing_subword_prefix", {"model": {"continuing_subword_prefix": "##"}}),
    "suffix": ("end_of_word_suffix", {"model": {"end_of_word_suffix": "</w>"}}),
    "no byte fallback": ("byte_fallback", {"model": {"byte_fallback": False}}),
    "ignore_merges": ("ignore_merges", {"model": {"ignore_merges": True}}),
    "a new model option": ("model.surprise", {"model": {"surprise": 1}}),
    "a new part": ("surprise", {"surprise": 1}),
    "version": ("version", {"version": "2.0"}),
    "truncation": ("truncation", {"truncation": {"max_length": 5}}),
    "padding": ("padding", {"padding": {"strategy": "BatchLongest"}}),
    "normalizer": ("NFC", {"normalizer": {"type": "NFC"}}),
    "normalizer with a pattern": ("normalizer", {"normalizer": {**REPLACE, "pattern": {"Regex": " +"}}}),
    "normalizer of nothing": ("normalizer", {"normalizer": {**REPLACE, "pattern": {"String": ""}}}),
    "normalizer that blows up": ("normalizer", {"normalizer": {**REPLACE, "content": "x" * 1000}}),
    "pre-tokenizer": ("ByteLevel", {"pre_tokenizer": {"type": "ByteLevel"}}),
    "split that splits": ("pre_tokenizer", {"pre_tokenizer": {**SPLIT, "pattern": {"String": "a"}}}),
    "split without normalizer": ("pre_tokenizer", {"normalizer": None}),
    "inverted split": ("pre_tokenizer", {"pre_tokenizer": {**SPLIT, "invert": True}}),
    "post-processor": ("ByteLevel", {"post_processor": {"type": "ByteLevel"}}),
    "template without text": ("leaves out", {"post_processor": {**TEMPLATE, "single": []}}),
    "template with text twice": ("once", {"post_processor": {**TEMPLATE, "single": [SEQUENCE, SEQUENCE]}}),
    "template with an unknown id": (
        "beyond",
        {"post_processor": {**TEMPLATE, "single": [{"SpecialToken": {"id": "far", "type_id": 0}}, SEQUENCE]}},
    ),
    "no decoder": ("decoder", {"decoder": None}),
    "decoder": ("Metaspace", {"decoder": {"type": "Metaspace"}}),
    "decoder without fuse": ("decoder", {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}}),
    "decoder that makes bytes": (
        "read as a byte",
        {
            "pieces": ["<0xA@>"],
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "@"}, "content": "0"},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
        },
    ),
    "single word": ("single_word", {"added": [{"id": 257, "content": "a", "single_word": True}]}),
    "left strip": ("lstrip", {"added": [{"id": 257, "content": "a", "lstrip": True}]}),
    "right strip": ("rstrip", {"added": [{"id": 257, "content": "a", "rstrip": True}]}),
    "added twice": ("twice", {"added": [{"id": 257, "content": "a"}, {"id": 257, "content": "a"}]}),
    "added under a wrong id": ("its place is 258", {"added": [{"id": 300, "content": "new"}]}),
    "added and normalized away": ("normalizer", {"added": [{"id": 258, "content": "a b", "normalized": True}]}),
    "added but empty": ("empty", {"added": [{"id": 258, "content": ""}]}),
    "a byte in small letters": ("<0xab>", {"pieces": ["<0xab>"]}),
    "a byte with a sign": (r"<0x\+A>", {"pieces": ["<0x+A>"]}),
    "a merge of a byte": ("joins a byte", {"pieces": ["a", "<0x41>a"]}),
    "a gap in the ids": ("without a gap", {"model": {"vocab": {"a": 0, "b": 2}, "merges": []}}),
    "a missing byte": ("<0x00>", {"model": {"vocab": {"<bos>": 0}, "merges": []}}),
    "an empty token": ("empty", {"pieces": ["a", ""], "merges": []}),
    "a huge token": ("longer", {"pieces": ["a" * 5000]}),
    "no vocabulary": ("vocab", {"model": {"vocab": None}}),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_features_are_refused_by_name(build: Build, name: str) -> None:
    word, changes = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModelError, match=word):
        compile_vocabulary(build(**{"pieces": ["a"], **changes}))


MALFORMED: dict[str, Callable[[Build], bytes]] = {
    "not JSON": lambda build: b"{",
    "not text": lambda build: b"\xff\xfe\x00",
    "nested without end": lambda build: b"[" * 100_000,
    "a list": lambda build: b"[]",
    "no model": lambda build: b"{}",
    "merge of an unknown token": lambda build: build(["a"], [("a", "b")]),
    "merge into an unknown token": lambda build: build(["a", "b"], [("a", "b")]),
    "merge of three": lambda build: build(["a"], model={"merges": [["a", "a", "a"]]}),
    "merge of numbers": lambda build: build(["a"], model={"merges": [[1, 2]]}),
    "id is text": lambda build: build(["a"], model={"vocab": {"a": "0"}}),
    "id below zero": lambda build: build(["a"], model={"vocab": {"a": -1}}),
    "surrogate in a token": lambda build: build(["a"]).replace(b'"a"', b'"\\ud800"'),
    "surrogate in an added token": lambda build: build(["a"], added=[{"id": 258, "content": "%"}]).replace(
        b'"%"', b'"\\udc00"'
    ),
    "flag is text": lambda build: build(["a"], added=[{"id": 257, "content": "a", "special": "yes"}]),
    "added token without content": lambda build: build(["a"], added=[{"id": 257}]),
    "part is text": lambda build: build(["a"], normalizer="NFC"),
    "pattern is missing": lambda build: build(["a"], normalizer={"type": "Replace", "content": ""}),
    "template of an unknown name": lambda build: build(
        ["a"], post_processor={**TEMPLATE, "single": [{"SpecialToken": {"id": "y"}}, SEQUENCE]}
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_a_checkpoint_error(build: Build, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        compile_vocabulary(MALFORMED[name](build))
