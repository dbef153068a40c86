"""What a conversion is calibrated on: texts, sounds and pictures that come with cellmd, or those of a folder."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

from cellmd.calibration.calibrate import Progress, calibrate
from cellmd.calibration.spending import choose_codings, load_spending, save_spending
from cellmd.calibration.state import key_of
from cellmd.convert.budget import Spending
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.errors import ArgumentError
from cellmd.processors.features import Prompt
from cellmd.processors.prompt import Processor
from cellmd.processors.tokenizer import Tokenizer
from cellmd.quant import PackedTensor

DEFAULT = "default"

Kind = Literal["sound", "picture"]

SUFFIXES: dict[Kind, frozenset[str]] = {
    "sound": frozenset({".wav", ".mp3", ".flac", ".ogg", ".m4a"}),
    "picture": frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"}),
}
QUESTIONS: dict[Kind, str] = {"sound": "Transcribe this audio:", "picture": "Describe this image:"}

PIECE_TOKENS = 512
MAX_PIECES = 64
MAX_MEDIA = 16
"""Of sounds, and of pictures."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Medium:
    """A sound or picture, its file or its bytes. answer: what a good model says about it, None where that is not
    known: the words of a sound, what a picture shows."""

    content: Path | bytes
    answer: str | None = None


@dataclass(frozen=True)
class Calibration:
    """A `Rounder` for conversion. texts: by name. media: by kind. description: where they are from. progress: of the
    calibration. state_folder: where to keep what is finished for the case of an interruption; None keeps nothing."""

    texts: Mapping[str, str]
    media: Mapping[Kind, Sequence[Medium]]
    description: str
    progress: Progress | None = None
    state_folder: Path | None = None

    @classmethod
    def find(
        cls, source: str | PathLike[str], progress: Progress | None = None, state_folder: Path | None = None
    ) -> Calibration:
        """`source`: "default", or a folder: texts (.txt), sounds and pictures in it. A text beside a sound or picture
        of the same name is no text of its own but the answer about it. Raises ArgumentError."""
        if source == DEFAULT:
            shipped = files("cellmd.calibration")
            texts = {path.name: path.read_text(encoding="utf-8") for path in _listed(shipped / "texts", {".txt"})}
            answers = {
                _stem(path.name): path.read_text(encoding="utf-8") for path in _listed(shipped / "media", {".txt"})
            }
            media = {
                kind: [
                    Medium(path.read_bytes(), answers.get(_stem(path.name)))
                    for path in _listed(shipped / "media", SUFFIXES[kind])
                ]
                for kind in SUFFIXES
            }
            return cls(texts, media, DEFAULT, progress, state_folder)
        folder = Path(source)
        if not folder.is_dir():
            raise ArgumentError(f"calibration material {str(source)!r}: neither {DEFAULT!r} nor a folder")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        by_kind = {kind: [path for path in paths if path.suffix.lower() in SUFFIXES[kind]] for kind in SUFFIXES}
        stems = {path.with_suffix("") for group in by_kind.values() for path in group}
        try:
            read = {path: path.read_text(encoding="utf-8") for path in paths if path.suffix == ".txt"}
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"calibration text in {folder} cannot be read: {error}") from error
        texts = {
            str(path.relative_to(folder)): text for path, text in read.items() if path.with_suffix("") not in stems
        }
        media = {
            kind: [Medium(path, read.get(path.with_suffix(".txt"))) for path in group]
            for kind, group in by_kind.items()
        }
        return cls(texts, media, folder.name, progress, state_folder)

    def choose(
        self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], extra_bytes: int, n_threads: int
    ) -> Spending:
        prompts = self._prompts(checkpoint)
        if self.state_folder is None:
            return choose_codings(checkpoint, plan, prompts, extra_bytes, n_threads, self.progress)
        key = f"{key_of(checkpoint, plan, prompts)} {extra_bytes}"
        spending = load_spending(self.state_folder / "spending.json", key)
        if spending is None:
            spending = choose_codings(checkpoint, plan, prompts, extra_bytes, n_threads, self.progress)
            save_spending(self.state_folder / "spending.json", key, spending)
        return spending

    def round(self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], n_threads: int) -> dict[str, PackedTensor]:
        state_folder = None if self.state_folder is None else self.state_folder / "rounding"
        return calibrate(checkpoint, plan, self._prompts(checkpoint), n_threads, self.progress, state_folder)

    def finished(self) -> None:
        """The conversion is complete: nothing needs to be kept."""
        if self.state_folder is not None:
            shutil.rmtree(self.state_folder, ignore_errors=True)

    def _prompts(self, checkpoint: Checkpoint) -> list[Prompt]:
        return self.prompts(Processor.from_assets(checkpoint.assets, checkpoint.config), checkpoint)

    def prompts(self, processor: Processor, checkpoint: Checkpoint) -> list[Prompt]:
        """Pieces of the texts, then a question about each sound and picture that the model has a tower for, with the
        answer where it is known. Raises ArgumentError if there is nothing, MediaError for a medium that cannot be
        read."""
        config = checkpoint.config
        prompts = [Prompt(tuple(piece)) for piece in self.pieces(processor.tokenizer, config.text.bos_token_id)]
        if config.audio is not None:
            for medium in _some(self.media.get("sound", ()), MAX_MEDIA):
                prompt = processor.prepare(QUESTIONS["sound"], audio=[medium.content])
                prompts.append(_answered(processor.tokenizer, prompt, medium))
        if config.vision is not None:
            for medium in _some(self.media.get("picture", ()), MAX_MEDIA):
                prompt = processor.prepare(QUESTIONS["picture"], images=[medium.content])
                prompts.append(_answered(processor.tokenizer, prompt, medium))
        if not prompts:
            raise ArgumentError(
                f"calibration material {self.description!r}: no text of {PIECE_TOKENS} tokens, and no sound or picture "
                "that the model has a tower for; give it more"
            )
        return prompts

    def pieces(self, tokenizer: Tokenizer, bos_token_id: int) -> list[list[int]]:
        """Pieces of PIECE_TOKENS tokens, the first of each the beginning-of-text token; at most MAX_PIECES, taken
        evenly from all there are."""
        length = PIECE_TOKENS - 1
        pieces = []
        for text in self.texts.values():
            ids = tokenizer.encode(text, special=False)
            pieces += [[bos_token_id, *ids[i : i + length]] for i in range(0, len(ids) - length + 1, length)]
        return _some(pieces, MAX_PIECES)


def _some(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly."""
    n = min(len(items), most)
    return [items[i * len(items) // n] for i in range(n)]


def _answered(tokenizer: Tokenizer, prompt: Prompt, medium: Medium) -> Prompt:
    if medium.answer is None:
        return prompt
    return replace(prompt, token_ids=prompt.token_ids + tuple(tokenizer.encode(medium.answer.strip(), special=False)))


def _listed(folder: Traversable, suffixes: Collection[str]) -> list[Traversable]:
    """Files with one of the suffixes, by name."""
    found = (each for each in folder.iterdir() if Path(each.name).suffix in suffixes)
    return sorted(found, key=lambda each: each.name)


def _stem(name: str) -> str:
    return Path(name).stem
