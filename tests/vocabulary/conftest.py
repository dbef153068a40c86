"""Tokenizers to compare: the real one where it is to be had, small ones of every shape always."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from cellmd.vocabulary import Vocabulary, compile_vocabulary
from checkpoints import small_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
Both = tuple[Tokenizer, Vocabulary]


def tokenizer_json(
    pieces: Sequence[str],
    merges: Iterable[tuple[str, str]] | None = None,
    added: Sequence[dict[str, Any]] = (),
    **parts: Any,
) -> bytes:
    """A tokenizer.json of the family: <bos>, the byte tokens, `pieces` (ids from 257), `merges`, `added`.

    merges: None for what SentencePiece's conversion gives: every way to cut a piece in two, in order of the piece's id,
    the longest left half first. added: entries of `added_tokens`, with only what differs from a plain special token.
    parts: other top-level keys, in place of the usual ones; `model` is merged into the usual model.
    """
    vocabulary = {token: i for i, token in enumerate(["<bos>", *BYTE_TOKENS, *pieces])}
    if merges is None:
        merges = [
            (piece[:cut], piece[cut:])
            for piece in pieces
            for cut in range(len(piece) - 1, 0, -1)
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**plain, **entry} for entry in [{"id": 0, "content": "<bos>"}, *added]],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [0], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<bos>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(merge) for merge in merges],
        }
        | parts.pop("model", {}),
    }
    return json.dumps({**content, **parts}, ensure_ascii=False).encode()


def both(raw: bytes) -> Both:
    """The library's tokenizer and the compiled one."""
    return Tokenizer.from_str(raw.decode()), Vocabulary.open(compile_vocabulary(raw))


def made_of_added_tokens() -> bytes:
    """Added tokens that begin like each other, single characters, ids after the model's, matched in normalized text."""
    pieces = ["<", ">", "|", "a", "b", "\n", "▁", "aa", "ab", "▁a", "<a>", "\n\n", "▁▁"]
    plain = {"special": False}
    names: list[tuple[str, dict[str, Any]]] = [
        ("<a>", {}), ("<a>b", plain), ("<a|", plain), ("<|", {}), ("\n", plain), ("\n\n\n", plain), ("ba", {}),
        ("b", {}), ("▁▁", {"special": False, "normalized": True}), ("▁<|a", {"special": False, "normalized": True}),
        ("é", {}), ("ab▁", {"normalized": True}),
    ]  # fmt: skip
    model = {token: i for i, token in enumerate(["<bos>", *BYTE_TOKENS, *pieces])}
    added, following = [], len(model)
    for name, flags in names:
        added.append({"id": model.get(name, following), "content": name, **flags})
        following += name not in model
    return tokenizer_json(pieces, added=added)


def tokenizers() -> dict[str, Callable[[], bytes]]:
    """Name -> a tokenizer.json. Gemma 4's own is among them if it is to be had: from the folder that the environment
    variable CELLMD_E2B names, or beside the checkout."""
    found: dict[str, Callable[[], bytes]] = {
        "checkpoint": lambda: json.dumps(small_tokenizer(), ensure_ascii=False).encode(),
        "added": made_of_added_tokens,
        "bare": lambda: tokenizer_json(["a", "b", "ab"], normalizer=None, pre_tokenizer=None, post_processor=None),
    }
    gemma4 = Path(os.environ.get("CELLMD_E2B", REPOSITORY.parent / "shared" / "e2b"))
    for name, folder in {"demo": REPOSITORY / "src/cellmd/demo/checkpoint", "gemma4": gemma4}.items():
        if (folder / "tokenizer.json").exists():
            found[name] = (folder / "tokenizer.json").read_bytes
    return found


@pytest.fixture(scope="session")
def build() -> Callable[..., bytes]:
    return tokenizer_json


@pytest.fixture(scope="session")
def compare() -> Callable[[bytes], Both]:
    return both


@pytest.fixture(scope="session", params=list(tokenizers()))
def raw(request: pytest.FixtureRequest) -> bytes:
    """Each tokenizer.json in turn."""
    return tokenizers()[request.param]()


@pytest.fixture(scope="session")
def compiled_table(raw: bytes) -> bytes:
    return compile_vocabulary(raw)


@pytest.fixture(scope="session")
def pair(raw: bytes, compiled_table: bytes) -> Both:
    return Tokenizer.from_str(raw.decode()), Vocabulary.open(compiled_table)
