"""Scores a model on sentences, pictures, films and questions that training never saw.

    python evaluate.py demo.cellmd --stamps STAMPS --fonts FONTS
    python evaluate.py demo.cellmd --guard            # a minute's work, with nothing installed
    python evaluate.py --reference CHECKPOINT --round 64 ...

Sentences are spoken by flite and espeak-ng as they are scored (`apt install flite espeak-ng`); `--guard` takes
the recordings in `tests/demo_model/recordings` instead, and only pictures that can be drawn without stamps; it
ends with an error where a score is far from what the float model has.
A fact is a phrase that the right answer contains, as `three red circles` or `to the left of`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from chat import UNKNOWN, talk, unknown
from films import draw_film, make_film
from media import film_bytes, film_frames, sound_samples
from pictures import draw_scene
from PIL import Image
from prompts import TRANSCRIBE
from sentences import normalise
from world import Question, make_scene, number_for_sign

from data import Maker

RECORDINGS = Path(__file__).resolve().parents[2] / "tests" / "demo_model" / "recordings"
CHECKPOINT = Path(__file__).resolve().parents[2] / "src" / "cellmd" / "demo" / "checkpoint"


@dataclass(frozen=True)
class Case:
    """A question with what it is about, and its true answer."""

    question: Question
    sound: np.ndarray | None = None
    image: Image.Image | None = None
    film: bytes | None = None


class Model(Protocol):
    def answer(self, case: Case) -> str: ...


class CellmdModel:
    """A `.cellmd` file through cellmd's public API."""

    def __init__(self, path: Path, backend: str) -> None:
        import cellmd

        self._model = cellmd.load(path, backend=backend)

    def answer(self, case: Case) -> str:
        media: dict[str, list[Any]] = {}
        if case.sound is not None:
            media["audio"] = [(case.sound, 16_000)]
        if case.image is not None:
            media["images"] = [case.image]
        if case.film is not None:
            media["videos"] = [case.film]
        result = self._model.generate(case.question.text, max_tokens=48, temperature=0, **media)
        return str(result.text)


# --- the cases -------------------------------------------------------------------------------------------------------


def spoken(maker: Maker, split: str, count: int, noise: float = 0.0) -> Iterator[Case]:
    for n in range(count):
        text, _, sound = maker.utterance(split, n)
        if noise:
            level = float(np.sqrt(np.square(sound).mean()))
            hiss = np.random.default_rng(n).normal(0, level * noise, len(sound))
            sound = (sound + hiss).astype(np.float32)
        yield Case(Question(TRANSCRIBE[0], text, ()), sound=sound)


def recorded(unheard: bool) -> Iterator[Case]:
    """The committed recordings."""
    for name, entry in json.loads((RECORDINGS / "sentences.json").read_text()).items():
        if entry["voice"].endswith("rms") == unheard:
            sound = sound_samples((RECORDINGS / name).read_bytes())
            yield Case(Question(TRANSCRIBE[0], entry["text"], ()), sound=sound)


def pictured(maker: Maker, count: int, described: bool, drawn_only: bool = False) -> Iterator[Case]:
    number = 0
    while count > 0:
        rng = random.Random(f"image:test:{number}")
        number += 1
        scene = make_scene(rng)
        if drawn_only and any(not item.kind.is_shape for item in scene.items):
            continue
        image = draw_scene(rng, scene, maker.studio)
        choice = 0 if described or len(scene.questions) == 1 else 1
        yield Case(scene.questions[choice], image=image)
        count -= 1


def unseen_numbers(maker: Maker, count: int) -> Iterator[Case]:
    """Three-digit numbers that no training picture shows."""
    for n in range(count):
        rng = random.Random(f"number:test:{n}")
        scene = make_scene(rng)
        while not scene.sign:
            scene = make_scene(rng)
        scene.sign = str(number_for_sign(rng, unseen=True))
        image = draw_scene(rng, scene, maker.studio)
        yield Case(
            Question("Describe this image.", f"The number {scene.sign}.", (f"number {scene.sign}",)), image=image
        )


def filmed(maker: Maker, count: int, described: bool, drawn_only: bool = False) -> Iterator[Case]:
    number = 0
    while count > 0:
        rng = random.Random(f"film:test:{number}")
        number += 1
        film = make_film(rng)
        if drawn_only and any(not actor.kind.is_shape for actor in film.actors):
            continue
        frames = draw_film(rng, film, maker.studio)
        yield Case(
            film.questions[0 if described else 1 + number % (len(film.questions) - 1)],
            film=film_bytes(frames, film.fps),
        )
        count -= 1


def read(count: int) -> Iterator[Case]:
    rng = random.Random("text:test")
    while count > 0:
        question = talk(rng)
        if question.answer != UNKNOWN:
            yield Case(question)
            count -= 1


def beyond(count: int) -> Iterator[Case]:
    rng = random.Random("unknown:test")
    for _ in range(count):
        yield Case(unknown(rng))


# --- scoring ---------------------------------------------------------------------------------------------------------


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Words to insert, delete or exchange to make one of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def has_fact(answer: str, fact: str) -> bool:
    plain, wanted = (" ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split()) for text in (answer, fact))
    return f" {wanted} " in f" {plain} "


def word_errors(model: Model, cases: Iterator[Case], show: list[str]) -> tuple[float, int]:
    wrong = words = 0
    for case in cases:
        answer = model.answer(case)
        truth = normalise(case.question.answer)
        errors = distance(truth, normalise(answer))
        if errors:
            show.append(f"{case.question.answer!r} heard as {answer!r}")
        wrong, words = wrong + errors, words + len(truth)
    return 100 * wrong / max(1, words), words


def facts_right(model: Model, cases: Iterator[Case], show: list[str]) -> tuple[float, int]:
    right = asked = 0
    for case in cases:
        answer = model.answer(case)
        found = [has_fact(answer, fact) for fact in case.question.facts]
        if not all(found):
            show.append(f"{case.question.text!r}: {case.question.answer!r} answered {answer!r}")
        right, asked = right + sum(found), asked + len(found)
    return 100 * right / max(1, asked), asked


def plan(arguments: argparse.Namespace) -> list[tuple[str, str, Callable[..., tuple[float, int]], Iterator[Case]]]:
    """Rows of the table: name, unit, how it is scored, and the cases."""
    n = arguments.slice
    if arguments.guard:
        maker = Maker(CHECKPOINT, None, None)
        return [
            ("word errors, trained voices", "%", word_errors, recorded(unheard=False)),
            ("word errors, unheard voice", "%", word_errors, recorded(unheard=True)),
            ("facts in pictures, described", "%", facts_right, pictured(maker, n or 12, True, drawn_only=True)),
            ("facts in films, described", "%", facts_right, filmed(maker, n or 8, True, drawn_only=True)),
            ("facts in films, asked", "%", facts_right, filmed(maker, n or 8, False, drawn_only=True)),
            ("questions in words", "%", facts_right, read(n or 12)),
        ]
    maker = Maker(CHECKPOINT, arguments.stamps, arguments.fonts)
    count = n or 200
    return [
        ("word errors, trained voices", "%", word_errors, spoken(maker, "trained", count)),
        ("word errors, trained voices, noise at 15 dB", "%", word_errors, spoken(maker, "trained", count, noise=0.178)),
        ("word errors, unheard voice (flite rms)", "%", word_errors, spoken(maker, "unheard", count)),
        ("word errors, unheard voices (espeak-ng)", "%", word_errors, spoken(maker, "unheard-espeak", count)),
        ("facts in pictures, described", "%", facts_right, pictured(maker, count, True)),
        ("facts in pictures, asked", "%", facts_right, pictured(maker, count, False)),
        ("numbers never shown in training", "%", facts_right, unseen_numbers(maker, count // 2)),
        ("facts in films, described", "%", facts_right, filmed(maker, count // 2, True)),
        ("facts in films, asked", "%", facts_right, filmed(maker, count // 2, False)),
        ("questions in words", "%", facts_right, read(count)),
        ("says that it does not know", "%", facts_right, beyond(count // 2)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a .cellmd file")
    parser.add_argument("--backend", default="auto", help="what runs the file: cpu, cuda, reference (default: auto)")
    parser.add_argument("--reference", type=Path, help="a checkpoint folder, run by transformers instead")
    parser.add_argument("--round", type=int, help="with --reference: round weights to INT4 in groups (0: rows)")
    parser.add_argument("--slice", type=int, default=0, help="this many cases a row")
    parser.add_argument(
        "--guard", action="store_true", help="the fast slice that needs no synthesiser, stamps or fonts"
    )
    parser.add_argument("--stamps", type=Path, help="folder made by prepare.py")
    parser.add_argument("--fonts", type=Path, help="folder of .ttf and .otf files")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    parser.add_argument("--errors", action="store_true", help="show what was wrong")
    arguments = parser.parse_args()
    if (arguments.file is None) == (arguments.reference is None):
        parser.error("give either a .cellmd file or --reference")
    if not arguments.guard and arguments.stamps is None:
        parser.error("give --stamps and --fonts (see prepare.py), or --guard")
    if arguments.reference:
        from reference import ReferenceModel

        model: Model = ReferenceModel(arguments.reference, arguments.round)
    else:
        model = CellmdModel(arguments.file, arguments.backend)
    table: dict[str, dict[str, float]] = {}
    for name, unit, score, cases in plan(arguments):
        if arguments.rows not in name:
            continue
        start, errors = time.time(), list[str]()
        value, size = score(model, cases, errors)
        table[name] = {"score": round(value, 2), "of": size, "seconds": round(time.time() - start, 1)}
        if not arguments.json:
            print(f"{name:46} {value:7.2f} {unit}   of {size}", flush=True)
        if arguments.errors:
            print("\n".join("    " + line for line in errors), flush=True)
    if arguments.json:
        print(json.dumps(table, indent=1))
    if arguments.guard:
        low = [
            n for n, row in table.items() if (row["score"] > 10 if n.startswith("word errors") else row["score"] < 90)
        ]
        if low:
            raise SystemExit(f"not what this model does: {', '.join(low)}")


if __name__ == "__main__":
    main()


__all__ = ["Case", "distance", "film_frames", "has_fact", "main"]
