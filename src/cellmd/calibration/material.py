"""What a conversion is calibrated on: the text that comes with cellmd, or a folder of texts, sounds and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

from cellmd.calibration.calibrate import Progress, calibrate
from cellmd.calibration.spending import choose_codings
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
class Calibration:
    """A `Rounder` for conversion. texts: by name. media: files by kind. description: where they are from. progress: of
    the calibration."""

    texts: Mapping[str, str]
    media: Mapping[Kind, Sequence[Path]]
    description: str
    progress: Progress | None = None

    @classmethod
    def find(cls, source: str | PathLike[str], progress: Progress | None = None) -> Calibration:
        """`source`: "default", or a folder: texts (.txt), sounds and pictures below it. Raises ArgumentError."""
        if source == DEFAULT:
            shipped = sorted((files("cellmd.calibration") / "texts").iterdir(), key=lambda each: each.name)
            texts = {each.name: each.read_text(encoding="utf-8") for each in shipped if each.name.endswith(".txt")}
            return cls(texts, {}, DEFAULT, progress)
        folder = Path(source)
        if not folder.is_dir():
            raise ArgumentError(f"calibration material {str(source)!r}: neither {DEFAULT!r} nor a folder")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        try:
            texts = {
                str(path.relative_to(folder)): path.read_text(encoding="utf-8")
                for path in paths
                if path.suffix == ".txt"
            }
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"calibration text in {folder} cannot be read: {error}") from error
        media = {kind: [path for path in paths if path.suffix.lower() in SUFFIXES[kind]] for kind in SUFFIXES}
        return cls(texts, media, folder.name, progress)

    def choose(
        self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], extra_bytes: int, n_threads: int
    ) -> Spending:
        processor = Processor.from_assets(checkpoint.assets, checkpoint.config)
        prompts = self.prompts(processor, checkpoint)
        return choose_codings(checkpoint, plan, prompts, extra_bytes, n_threads, self.progress)

    def round(self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], n_threads: int) -> dict[str, PackedTensor]:
        processor = Processor.from_assets(checkpoint.assets, checkpoint.config)
        return calibrate(checkpoint, plan, self.prompts(processor, checkpoint), n_threads, self.progress)

    def prompts(self, processor: Processor, checkpoint: Checkpoint) -> list[Prompt]:
        """Pieces of the texts, then a question about each sound and picture that the model has a tower for. Raises
        ArgumentError if there is nothing, MediaError for a medium that cannot be read."""
        config = checkpoint.config
        prompts = [Prompt(tuple(piece)) for piece in self.pieces(processor.tokenizer, config.text.bos_token_id)]
        ask: list[tuple[Kind, bool, Callable[[str, Path], Prompt]]] = [
            ("sound", config.audio is not None, lambda question, path: processor.prepare(question, audio=[path])),
            ("picture", config.vision is not None, lambda question, path: processor.prepare(question, images=[path])),
        ]
        for kind, has_tower, prepare in ask:
            if has_tower:
                prompts += [prepare(QUESTIONS[kind], path) for path in _some(self.media.get(kind, ()), MAX_MEDIA)]
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
