"""Conversations as token ids, exactly as the chat template and the processor would write them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from world import Question

from tokenizer import ID

TRANSCRIBE = (
    "Transcribe this audio:", "Transcribe this audio.", "Transcribe the audio.", "Transcribe this recording.",
    "Please transcribe this.", "What is said?", "What does the speaker say?", "Write down what you hear.",
    "What do you hear?", "Transcribe the following speech segment in English.", "What is being said?",
    "Convert this speech to text.", "Type what is said in the recording.", "Write down the sentence.",
)  # fmt: skip
_SYSTEM = ("You are a helpful assistant.", "Answer briefly.", "Be helpful and honest.")
MAX_ANSWER = 44


@dataclass(frozen=True)
class Media:
    """Soft tokens in a user turn: which placeholder, how many in a run, and the text before each run."""

    token: str
    soft_tokens: int
    stamps: tuple[str, ...] = ("",)

    @property
    def borders(self) -> tuple[int, int]:
        return (ID["<|audio>"], ID["<audio|>"]) if self.token == "<|audio|>" else (ID["<|image>"], ID["<image|>"])


def image_media(soft_tokens: int) -> Media:
    return Media("<|image|>", soft_tokens)


def film_media(soft_tokens: int, seconds: Sequence[float]) -> Media:
    """Each frame with its time, as `mm:ss`."""
    stamps = [f"{int(s // 60):02d}:{int(s % 60):02d} " for s in seconds]
    return Media("<|video|>", soft_tokens, tuple(s if n == 0 else " " + s for n, s in enumerate(stamps)))


class Prompter:
    """Encodes with the checkpoint's tokenizer; pieces between special tokens are remembered."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._piece = lru_cache(50_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))

    def turns(
        self, questions: Sequence[Question], media: Media | None, rng: random.Random
    ) -> tuple[list[int], list[int]]:
        """Ids, and a mask that is 1 on the answers (with their closing `<turn|>`).

        The media come with the first question, before its text or (three times in ten) after it.
        """
        ids, mask = [ID["<bos>"]], [0]

        def add(new: Sequence[int], answer: int = 0) -> None:
            ids.extend(new)
            mask.extend([answer] * len(new))

        if rng.random() < 0.04:
            add([ID["<|turn>"], *self._piece("system\n" + rng.choice(_SYSTEM)), ID["<turn|>"], *self._piece("\n")])
        for n, question in enumerate(questions):
            add([ID["<|turn>"]])
            if n == 0 and media is not None:
                after = rng.random() < 0.3
                add(self._user(question.text, media, after))
            else:
                add(self._piece("user\n" + question.text))
            add([ID["<turn|>"], *self._piece("\n"), ID["<|turn>"], *self._piece("model\n")])
            add([*self._piece(question.answer), ID["<turn|>"]], answer=1)
            if n + 1 < len(questions):
                add(self._piece("\n"))
        return ids, mask

    def _user(self, text: str, media: Media, after: bool) -> list[int]:
        opening, closing = media.borders
        ids: list[int] = []
        lead = "user\n" + (text if after else "")
        for stamp in media.stamps:
            if lead + stamp:
                ids += self._piece(lead + stamp)
            lead = ""
            ids += [opening, *[ID[media.token]] * media.soft_tokens, closing]
        if not after and text:
            ids += self._piece(text)
        return ids


def padded(ids: list[int], mask: list[int], length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Right-padded rows, or None if it does not fit."""
    if len(ids) > length or sum(mask) > MAX_ANSWER:
        return None
    row, marks = np.zeros(length, np.int16), np.zeros(length, np.uint8)
    row[: len(ids)], marks[: len(ids)] = ids, mask
    return row, marks
