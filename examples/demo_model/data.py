"""Training data as shards: worker processes draw, speak and write; the trainer picks the files up.

Sample n of a kind is made from the seed `KIND:SPLIT:n` alone, so any sample can be made again. The split `pairs` is for
training too: more pictures and films of two things, with more questions that only one of the two answers.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import films
import numpy as np
import world
from chat import talk
from films import MOTIONS, draw_film, make_film, sampled
from pictures import LABELS, TINTS, Mark, Studio, draw_scene
from PIL import Image
from prompts import TRANSCRIBE, Prompter, film_media, image_media, padded
from sentences import held_out, is_fixed, sentence
from speech import (
    RATE,
    SOUNDS,
    Speaker,
    Voice,
    trained_voice_for_test,
    training_voice,
    trimmed,
    unheard_espeak_for_test,
    unheard_voice_for_test,
)
from world import Question, make_scene

PATCH, POOL, SOFT_TOKENS, FRAMES = 16, 3, 70, 4
PATCHES = SOFT_TOKENS * POOL * POOL
AUDIO_SAMPLES = 65_536
IMAGE_LENGTH, FILM_LENGTH, TEXT_LENGTH, AUDIO_LENGTH = 128, 384, 80, 168
CHOICES = 4
TARGET = 56
SHARD = {"audio": 96, "image": 32, "film": 8}
IGNORED = 255


def target_size(width: int, height: int) -> tuple[int, int]:
    """The size to which Gemma 4 resizes a picture, keeping its aspect ratio within the budget of patches."""
    side = PATCH * POOL
    factor = math.sqrt(PATCHES * PATCH**2 / (width * height))
    w, h = (int(factor * n // side) * side for n in (width, height))
    if w == 0 or h == 0:
        raise ValueError(f"{width} x {height} is too long and thin")
    return w, h


def patches_of(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 patches, zero-padded to the budget, and the grid (columns, rows)."""
    size = target_size(*image.size)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    columns, rows = size[0] // PATCH, size[1] // PATCH
    pixels = np.asarray(image).reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 1, 3, 4)
    out = np.zeros((PATCHES, PATCH * PATCH * 3), np.uint8)
    out[: rows * columns] = pixels.reshape(rows * columns, -1)
    return out, (columns, rows)


def cells_of(marks: Sequence[Mark], size: tuple[int, int], background: str) -> np.ndarray:
    """(3, 70) labels, colours and motions of what each soft token sees (`IGNORED` where it is unclear).

    A token whose cell holds a drawn thing's middle part says which; one far from all things says 0 and the
    colour of the background.
    """
    columns, rows = (n // (PATCH * POOL) for n in target_size(*size))
    x = (np.arange(columns) + 0.5) * size[0] / columns
    y = (np.arange(rows) + 0.5) * size[1] / rows
    out = np.full((3, SOFT_TOKENS), IGNORED, np.uint8)
    found = np.full((3, rows, columns), IGNORED, np.uint8)
    cell = max(size[0] / columns, size[1] / rows)
    nearest = np.full((rows, columns), 1e9)
    for mark in marks:
        away = np.hypot(x[None, :] - mark.x, y[:, None] - mark.y)
        nearest = np.minimum(nearest, away - mark.reach)
        inside = away < mark.reach * 0.75
        inside.flat[away.argmin()] = True
        found[0][inside] = mark.label
        if mark.colour:
            found[1][inside] = TINTS[mark.colour]
        if mark.motion:
            found[2][inside] = MOTIONS.index(mark.motion)
    clear = nearest > cell * (1.0 if marks and marks[0].label < LABELS["A"] else 3.0)
    found[0][clear], found[1][clear] = 0, TINTS[background]
    out[:, : rows * columns] = found.reshape(3, -1)
    return out


class Maker:
    """Makes samples of every kind, in one process."""

    def __init__(self, checkpoint: Path, stamps: Path | None, fonts: Path | None) -> None:
        self.prompter = Prompter(checkpoint)
        self.studio = Studio(stamps, fonts)
        self._speaker: Speaker | None = None

    @property
    def speaker(self) -> Speaker:
        if self._speaker is None:
            self._speaker = Speaker()
        return self._speaker

    def utterance(self, split: str, n: int) -> tuple[str, Voice, np.ndarray]:
        """A sentence and its sound. `split` is `train`, `trained`, `unheard` or `unheard-espeak`."""
        rng = random.Random(f"audio:{split}:{n}")
        text = sentence(rng)
        while held_out(text) == (split == "train") or (split != "train" and is_fixed(text)):
            text = sentence(rng)
        pick = {"train": training_voice, "trained": trained_voice_for_test, "unheard": unheard_voice_for_test,
                "unheard-espeak": unheard_espeak_for_test}[split]  # fmt: skip
        voice = pick(rng)
        ends = (rng.uniform(0.02, 0.35), rng.uniform(0.05, 0.35)) if split == "train" else (0.15, 0.25)
        return text, voice, trimmed(self.speaker.say(text, voice), *ends)

    def audio(self, split: str, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Waves, and the tokens before and after the soft tokens (whose number augmentation will change)."""
        rows = len(numbers)
        out = {
            "wave": np.zeros((rows, AUDIO_SAMPLES), np.int16), "length": np.zeros(rows, np.int32),
            "before": np.zeros((rows, 48), np.int16), "before_length": np.zeros(rows, np.int16),
            "after": np.zeros((rows, 80), np.int16), "after_mask": np.zeros((rows, 80), np.uint8),
            "target": np.zeros((rows, TARGET), np.uint8),
        }  # fmt: skip
        for row, n in enumerate(numbers):
            text, _, sound = self.utterance(split, n)
            sound = sound[:AUDIO_SAMPLES]
            rng = random.Random(f"prompt:{split}:{n}")
            request = "" if rng.random() < 0.03 else rng.choice(TRANSCRIBE)
            question = Question(request if split == "train" else TRANSCRIBE[0], text, ())
            ids, mask = self.prompter.turns([question], _ONE_AUDIO, rng)
            at = ids.index(_AUDIO_ID)
            out["wave"][row, : len(sound)] = (sound * 32767).astype(np.int16)
            out["length"][row] = len(sound)
            out["before"][row, :at], out["before_length"][row] = ids[:at], at
            rest, marks = ids[at + 1 :], mask[at + 1 :]
            out["after"][row, : len(rest)], out["after_mask"][row, : len(rest)] = rest, marks
            sounds = [_SOUND[c] for c in self.speaker.phonemes(text) if c in _SOUND][:TARGET]
            out["target"][row, : len(sounds)] = sounds
        return out

    def image(self, split: str, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        rows = len(numbers)
        out = {
            "patches": np.zeros((rows, 1, PATCHES, PATCH * PATCH * 3), np.uint8), "grid": np.zeros((rows, 2), np.int16),
            "ids": np.zeros((rows, CHOICES, IMAGE_LENGTH), np.int16),
            "mask": np.zeros((rows, CHOICES, IMAGE_LENGTH), np.uint8),
            "cells": np.zeros((rows, 1, 3, SOFT_TOKENS), np.uint8),
        }  # fmt: skip
        for row, n in enumerate(numbers):
            rng = random.Random(f"image:{split}:{n}")
            scene = make_scene(rng, world.MOSTLY_PAIRS) if split == "pairs" else make_scene(rng)
            marks: list[Mark] = []
            picture = draw_scene(rng, scene, self.studio, marks=marks)
            out["patches"][row, 0], (columns, high) = patches_of(picture)
            out["cells"][row, 0] = cells_of(marks, picture.size, scene.background)
            out["grid"][row] = columns, high
            media = image_media(columns * high // POOL**2)
            pairs = world.contrasts(rng, scene) if split == "pairs" else []
            self._choose(rng, scene.questions, pairs, media, out["ids"][row], out["mask"][row], IMAGE_LENGTH)
        return out

    def film(self, split: str, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        rows = len(numbers)
        out = {
            "patches": np.zeros((rows, FRAMES, PATCHES, PATCH * PATCH * 3), np.uint8),
            "grid": np.zeros((rows, 2), np.int16), "ids": np.zeros((rows, CHOICES, FILM_LENGTH), np.int16),
            "mask": np.zeros((rows, CHOICES, FILM_LENGTH), np.uint8),
            "cells": np.zeros((rows, FRAMES, 3, SOFT_TOKENS), np.uint8),
        }  # fmt: skip
        for row, n in enumerate(numbers):
            rng = random.Random(f"film:{split}:{n}")
            film = make_film(rng, films.MOSTLY_PAIRS) if split == "pairs" else make_film(rng)
            taken = sampled(film.length)
            marks: list[list[Mark]] = []
            for place, frame in enumerate(draw_film(rng, film, self.studio, taken, marks)):
                out["patches"][row, place], (columns, high) = patches_of(frame)
                out["cells"][row, place] = cells_of(marks[place], frame.size, film.background)
            out["grid"][row] = columns, high
            media = film_media(columns * high // POOL**2, [i / film.fps for i in taken])
            pairs = films.contrasts(rng, film) if split == "pairs" else []
            self._choose(rng, film.questions, pairs, media, out["ids"][row], out["mask"][row], FILM_LENGTH)
        return out

    def _choose(self, rng, questions, pairs, media, ids, mask, length):  # type: ignore[no-untyped-def]
        """Several conversations about one picture: the first describes it, some have two turns, and up to two are
        `pairs` of questions."""
        rest = questions[1:]
        for choice in range(CHOICES):
            first = questions[0] if choice == 0 or not rest else rest[(choice - 1) % len(rest)]
            if choice == 0 and rng.random() < 0.04:
                first = Question("", first.answer, first.facts)
            asked = [first]
            if 1 <= choice <= min(2, len(pairs)):
                asked = list(pairs[choice - 1])
            elif rest and rng.random() < 0.25:
                asked.append(rng.choice([q for q in questions if q is not first]))
            found = padded(*self.prompter.turns(asked, media, rng), length)
            if found is None:
                found = padded(*self.prompter.turns(asked[:1], media, random.Random(1)), length)
            assert found is not None
            ids[choice], mask[choice] = found

    def text(self, split: str, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        out = {
            "ids": np.zeros((len(numbers), TEXT_LENGTH), np.int16),
            "mask": np.zeros((len(numbers), TEXT_LENGTH), np.uint8),
        }
        for row, n in enumerate(numbers):
            rng = random.Random(f"text:{split}:{n}")
            found = None
            while found is None:
                asked = [talk(rng) for _ in range(1 if rng.random() < 0.7 else 2)]
                found = padded(*self.prompter.turns(asked, None, rng), TEXT_LENGTH)
            out["ids"][row], out["mask"][row] = found
        return out


_SOUND = {c: n + 1 for n, c in enumerate(SOUNDS)}


def _one_audio():  # type: ignore[no-untyped-def]
    from prompts import Media

    from tokenizer import ID

    return Media("<|audio|>", 1), ID["<|audio|>"]


_ONE_AUDIO, _AUDIO_ID = _one_audio()


def work(
    kind: str, split: str, first: int, step: int, folder: str, checkpoint: str, stamps: str, fonts: str,
    waiting: int = 24,
) -> None:  # fmt: skip
    """One worker: shards `first`, `first + step`, ... for ever, never more than `waiting` unread files ahead."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(5)
    maker = Maker(Path(checkpoint), Path(stamps), Path(fonts))
    out, size, number = Path(folder), SHARD[kind], first
    while not (out / "stop").exists():
        if len(list(out.glob(f"{kind}-*.npz"))) >= waiting:
            time.sleep(0.05)
            continue
        arrays = getattr(maker, kind)(split, range(number * size, (number + 1) * size))
        partial = out / f"partial-{kind}-{number}.tmp"
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.rename(out / f"{kind}-{number:06d}.npz")
        number += step


__all__ = ["RATE", "Maker", "patches_of", "target_size", "work"]
