"""Calibration text: what comes with cellmd, or a folder of .txt files, cut into pieces of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path

from cellmd.calibration.calibrate import Progress, calibrate
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.errors import ArgumentError
from cellmd.processors.tokenizer import Tokenizer, open_tokenizer
from cellmd.quant import PackedTensor

DEFAULT = "default"

PIECE_TOKENS = 512
MAX_PIECES = 40


@dataclass(frozen=True)
class TextCalibration:
    """A `Rounder` for conversion. texts: by name. description: where they are from. progress: of the calibration."""

    texts: Mapping[str, str]
    description: str
    progress: Progress | None = None

    @classmethod
    def find(cls, source: str | PathLike[str], progress: Progress | None = None) -> TextCalibration:
        """`source`: "default", or a folder; every .txt file below it is used. Raises ArgumentError."""
        if source == DEFAULT:
            shipped = files("cellmd.calibration") / "texts"
            texts = {
                each.name: each.read_text(encoding="utf-8")
                for each in sorted(shipped.iterdir(), key=lambda each: each.name)
                if each.name.endswith(".txt")
            }
            return cls(texts, DEFAULT, progress)
        folder = Path(source)
        if not folder.is_dir():
            raise ArgumentError(f"calibration text {str(source)!r}: neither {DEFAULT!r} nor a folder of .txt files")
        try:
            texts = {
                str(path.relative_to(folder)): path.read_text(encoding="utf-8")
                for path in sorted(folder.rglob("*.txt"))
            }
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"calibration text in {folder} cannot be read: {error}") from error
        return cls(texts, folder.name, progress)

    def round(self, checkpoint: Checkpoint, plan: Sequence[PlannedTensor], n_threads: int) -> dict[str, PackedTensor]:
        tokenizer = open_tokenizer(checkpoint.assets)
        pieces = self.pieces(tokenizer, checkpoint.config.text.bos_token_id)
        return calibrate(checkpoint, plan, pieces, n_threads, self.progress)

    def pieces(self, tokenizer: Tokenizer, bos_token_id: int) -> list[list[int]]:
        """Pieces of PIECE_TOKENS tokens, the first of each the beginning-of-text token; at most MAX_PIECES, taken
        evenly from all there are. Raises ArgumentError if there is not one."""
        length = PIECE_TOKENS - 1
        pieces = []
        for text in self.texts.values():
            ids = tokenizer.encode(text, special=False)
            pieces += [[bos_token_id, *ids[i : i + length]] for i in range(0, len(ids) - length + 1, length)]
        if not pieces:
            raise ArgumentError(
                f"calibration text {self.description!r}: no .txt file in it has {length} tokens; give it more text"
            )
        n = min(len(pieces), MAX_PIECES)
        return [pieces[i * len(pieces) // n] for i in range(n)]
