"""What surrounds the merges in a tokenizer.json: added tokens, normalizer, template, decoder, read and judged.

Only what `Vocabulary` reproduces exactly is admitted; anything else is refused by name, and the caller keeps to the
`tokenizers` library and the stored tokenizer.json. Admitted is the pipeline that the Gemma family uses:

    added tokens -> Replace(" ", "\u2581") -> [Split(" ")] -> BPE with byte fallback -> template
    decoder: Replace("\u2581", " ") -> ByteFallback -> Fuse

The same reading runs when a table is compiled and when one is opened, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellmd.errors import CheckpointError, UnsupportedModelError

MAX_REPLACEMENT = 16  # characters: bounds what a hostile table can blow a text up to
_TOKENIZER_KEYS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model",
}  # fmt: skip
_MODEL_KEYS = {
    "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges", "vocab", "merges",
}  # fmt: skip


@dataclass(frozen=True)
class AddedToken:
    """A token found in the text before any merge. `special`: left out of decoded text on request. `normalized`: looked
    for in the normalized text, after all others."""

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True)
class Replacement:
    """Every occurrence of `pattern` (not empty) becomes `content`."""

    pattern: str
    content: str

    def __call__(self, text: str) -> str:
        return text.replace(self.pattern, self.content)


@dataclass(frozen=True)
class Pipeline:
    """The parts of a tokenizer.json other than vocabulary and merges, as `Vocabulary` needs them."""

    added: tuple[AddedToken, ...]
    normalizer: Replacement | None
    detokenizer: Replacement | None
    prefix: tuple[int, ...]
    """Ids that the template puts before the text (<bos>)."""
    suffix: tuple[int, ...]


def read_pipeline(tokenizer: Mapping[str, Any]) -> Pipeline:
    """The pipeline of a parsed tokenizer.json (`model` may lack `vocab` and `merges`).

    Raises UnsupportedModelError for a feature that is not reproduced, CheckpointError for malformed content.
    """
    try:
        _known(tokenizer, _TOKENIZER_KEYS, "")
        if tokenizer.get("version") != "1.0":
            raise UnsupportedModelError(f"tokenizer.json: version {tokenizer.get('version')!r}, '1.0' is supported")
        for key in ("truncation", "padding"):
            if tokenizer.get(key) is not None:
                raise UnsupportedModelError(f"tokenizer.json: {key} is set, which the compiled tokenizer does not do")
        _check_model(tokenizer["model"])
        normalizer = _replacement(tokenizer.get("normalizer"), "normalizer")
        _check_pre_tokenizer(tokenizer.get("pre_tokenizer"), normalizer)
        prefix, suffix = _read_template(tokenizer.get("post_processor"))
        return Pipeline(
            added=tuple(_added_token(entry, normalizer) for entry in tokenizer.get("added_tokens") or ()),
            normalizer=normalizer,
            detokenizer=_read_decoder(tokenizer.get("decoder")),
            prefix=prefix,
            suffix=suffix,
        )
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise CheckpointError(f"tokenizer.json: malformed, {type(error).__name__}: {error}") from error


def _known(entry: Mapping[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(set(entry) - keys)
    if unknown:
        raise UnsupportedModelError(f"tokenizer.json: {where}{unknown[0]} is not known to the compiled tokenizer")


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise UnsupportedModelError(f"tokenizer.json: model.type {model.get('type')!r}, 'BPE' is supported")
    _known(model, _MODEL_KEYS, "model.")
    admitted = {
        "dropout": (None, 0),
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "byte_fallback": (True,),
        "ignore_merges": (None, False),
    }
    for key, values in admitted.items():
        if model.get(key) not in values:
            raise UnsupportedModelError(f"tokenizer.json: model.{key} {model.get(key)!r}, {values[-1]!r} is supported")


def _replacement(part: Mapping[str, Any] | None, where: str) -> Replacement | None:
    if part is None:
        return None
    if part["type"] != "Replace":
        raise UnsupportedModelError(f"tokenizer.json: {where} {part['type']}, Replace is supported")
    _known(part, {"type", "pattern", "content"}, f"{where}.")
    pattern, content = part["pattern"], part["content"]
    if set(pattern) != {"String"} or not pattern["String"]:
        raise UnsupportedModelError(f"tokenizer.json: {where} replaces {pattern}, a plain string is supported")
    if len(_text(content)) > MAX_REPLACEMENT:
        raise UnsupportedModelError(f"tokenizer.json: {where} puts in {len(content)} characters for each found")
    return Replacement(_text(pattern["String"]), content)


def _check_pre_tokenizer(part: Mapping[str, Any] | None, normalizer: Replacement | None) -> None:
    """None, or a split at a string that the normalizer leaves nowhere in the text, which therefore never splits."""
    if part is None:
        return
    if part["type"] != "Split":
        raise UnsupportedModelError(f"tokenizer.json: pre_tokenizer {part['type']}, Split is supported")
    _known(part, {"type", "pattern", "behavior", "invert"}, "pre_tokenizer.")
    border = part["pattern"].get("String")
    idle = (
        normalizer is not None and len(normalizer.pattern) == 1
        and border == normalizer.pattern and border not in normalizer.content
    )  # fmt: skip
    if not idle or part["invert"] is not False:
        raise UnsupportedModelError(
            f"tokenizer.json: pre_tokenizer splits at {part['pattern']}; supported is a split at what the normalizer "
            "replaces"
        )


def _read_template(part: Mapping[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a single text."""
    if part is None:
        return (), ()
    if part["type"] != "TemplateProcessing":
        raise UnsupportedModelError(f"tokenizer.json: post_processor {part['type']}, TemplateProcessing is supported")
    _known(part, {"type", "single", "pair", "special_tokens"}, "post_processor.")
    sides: list[tuple[int, ...]] = [()]
    for piece in part["single"]:
        if set(piece) == {"Sequence"} and piece["Sequence"]["id"] == "A" and len(sides) == 1:
            sides.append(())
        elif set(piece) == {"SpecialToken"}:
            ids = part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
            sides[-1] += tuple(_natural(i) for i in ids)
        else:
            raise UnsupportedModelError(f"tokenizer.json: post_processor has {piece}; supported is the text, once")
    if len(sides) != 2:
        raise UnsupportedModelError("tokenizer.json: post_processor leaves out the text")
    return sides[0], sides[1]


def _read_decoder(part: Mapping[str, Any] | None) -> Replacement | None:
    steps: Sequence[Mapping[str, Any]] = part["decoders"] if part and part["type"] == "Sequence" else ()
    kinds = [step["type"] for step in steps]
    if kinds[-2:] != ["ByteFallback", "Fuse"] or len(kinds) > 3:
        found = kinds or (part["type"] if part else None)
        raise UnsupportedModelError(f"tokenizer.json: decoder {found}; Replace, ByteFallback, Fuse is supported")
    return _replacement(steps[0], "decoder") if len(kinds) == 3 else None


def _added_token(entry: Mapping[str, Any], normalizer: Replacement | None) -> AddedToken:
    content = _text(entry["content"])
    if not content:
        raise UnsupportedModelError("tokenizer.json: an added token is empty")
    for flag in ("single_word", "lstrip", "rstrip"):
        if entry[flag] is not False:
            raise UnsupportedModelError(f"tokenizer.json: added token {content!r} has {flag}, which is not supported")
    normalized = _boolean(entry["normalized"])
    if normalized and normalizer is not None and normalizer(content) != content:
        raise UnsupportedModelError(
            f"tokenizer.json: added token {content!r} is changed by its own normalizer, which is not supported"
        )
    return AddedToken(_natural(entry["id"]), content, _boolean(entry["special"]), normalized)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    value.encode()  # a lone surrogate is a ValueError here, not somewhere later
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not a boolean")
    return value


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a token id")
    return value
