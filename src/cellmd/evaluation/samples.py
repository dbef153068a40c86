"""What models are compared on: pieces of text, and questions about sounds and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmd.calibration.material import QUESTIONS, SUFFIXES, Kind
from cellmd.errors import ArgumentError
from cellmd.processors.tokenizer import Tokenizer


@dataclass(frozen=True)
class MediaSample:
    """A question about one file. said: the words of a sound, from STEM.txt beside it, None without."""

    kind: Kind
    path: Path
    question: str
    said: str | None


def text_pieces(tokenizer: Tokenizer, path: Path, bos_token_id: int, length: int, most_tokens: int) -> list[list[int]]:
    """The file's first tokens in pieces of `length`, each after a beginning-of-text token; a last part that is shorter
    is left out unless it is all there is. Raises ArgumentError for a file that cannot be read or has no two tokens."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: cannot be read as text: {error}") from error
    own = length - 1
    ids = tokenizer.encode(text, special=False)[: max(most_tokens // length, 1) * own]
    if len(ids) < 2:
        raise ArgumentError(f"{path}: holds no text to compare models on")
    whole = len(ids) // own * own or len(ids)
    return [[bos_token_id, *ids[i : i + own]] for i in range(0, whole, own)]


def media_samples(kind: Kind, folder: Path, question: str | None = None) -> list[MediaSample]:
    """Every sound or picture in a folder. Raises ArgumentError if there is none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES[kind])
    if not paths:
        raise ArgumentError(f"{folder}: no {kind} in it ({', '.join(sorted(SUFFIXES[kind]))})")
    return [MediaSample(kind, path, question or QUESTIONS[kind], _transcript(path, kind)) for path in paths]


def _transcript(path: Path, kind: Kind) -> str | None:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8") if kind == "sound" and beside.is_file() else None


def following(piece: Sequence[int]) -> Sequence[int]:
    """The token after each position but the last."""
    return piece[1:]
