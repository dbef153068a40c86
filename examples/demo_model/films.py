"""Short films of moving things, and what is asked about them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from pictures import LABELS, Mark, Studio, background, jpeg, paste_stamp, shape_mask, tint
from PIL import Image
from world import NUMBER_WORDS, Kind, Question, a_kind, capital, plural

DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
DESCRIBE = (
    "Describe this video.", "Describe this film.", "What happens in this video?", "What happens in the film?",
    "What do you see in this video?", "Tell me what happens.", "Describe the video in one sentence.",
    "Please describe the film.",
)  # fmt: skip
NUM_FRAMES = 4
# What a thing does, as the auxiliary loss of training names it.
MOTIONS = ("stay", *DIRECTIONS, "grow", "shrink")
# How often a film is of each sort: one thing that moves, several alike, one that grows or shrinks, two that differ.
SORTS = (34, 22, 14, 30)
MOSTLY_PAIRS = (20, 14, 8, 58)


@dataclass(frozen=True)
class Actor:
    """One thing in a film: where it starts and ends (in units of the frame), and its radius then."""

    kind: Kind
    start: tuple[float, float]
    end: tuple[float, float]
    radius: tuple[float, float]

    @property
    def motion(self) -> str:
        """One of `MOTIONS`."""
        if self.radius[0] != self.radius[1]:
            return "grow" if self.radius[0] < self.radius[1] else "shrink"
        way = tuple((b > a) - (b < a) for a, b in zip(self.start, self.end, strict=True))
        return next((name for name, step in DIRECTIONS.items() if step == way), "stay")


@dataclass
class Film:
    """Actors on a background for some seconds."""

    actors: list[Actor]
    background: str
    seconds: float
    fps: int
    questions: list[Question]

    @property
    def length(self) -> int:
        return max(NUM_FRAMES, int(self.seconds * self.fps))


def sampled(length: int, count: int = NUM_FRAMES) -> list[int]:
    """The frames that a processor takes of a film of `length` frames."""
    return [n * length // count for n in range(count)]


def make_film(rng: random.Random, sorts: tuple[int, ...] = SORTS) -> Film:
    """A film's worth of facts. With `MOSTLY_PAIRS`, most films are of two things, and these mostly part ways."""
    ground = rng.choice(("white", "black", "gray", "blue", "green", "yellow", "pink", "brown"))
    maker = rng.choices((_one, _several, _size, _pair if sorts is MOSTLY_PAIRS else _two), weights=sorts)[0]
    actors, questions = maker(rng, ground)
    return Film(actors, ground, rng.uniform(1.5, 6.0), rng.choice((8, 10, 12, 15, 24, 25)), questions)


def _path(rng: random.Random, where: str, reach: float, lane: float | None = None) -> tuple[tuple[float, float], ...]:
    """Start and end of a way in one direction; `lane` fixes the place across it."""
    dx, dy = DIRECTIONS[where]
    near, far = rng.uniform(reach, 0.3), rng.uniform(0.75, 1.0)
    near, far = (near, far) if dx + dy > 0 else (1 - near, 1 - far)
    across = rng.uniform(reach, 1 - reach) if lane is None else lane
    return ((near, across), (far, across)) if dx else ((across, near), (across, far))


def _one(rng: random.Random, ground: str) -> tuple[list[Actor], list[Question]]:
    kind, where = a_kind(rng, ground), rng.choice(tuple(DIRECTIONS))
    radius = rng.uniform(0.1, 0.2)
    start, end = _path(rng, where, radius)
    verb = _verb(kind, 1, "move")
    phrase = kind.phrase()
    facts = (phrase, f"{verb} {where}")
    return [Actor(kind, start, end, (radius, radius))], [
        Question(rng.choice(DESCRIBE), capital(f"{phrase} {verb} {where}."), facts),
        Question("What moves?", capital(phrase + "."), (phrase,)),
        _where_to(rng, kind, 1, where),
        _count(rng, 1),
    ]


def _several(rng: random.Random, ground: str) -> tuple[list[Actor], list[Question]]:
    kind = a_kind(rng, ground)
    while plural(kind.name) == kind.name:
        kind = a_kind(rng, ground)
    count, where = rng.randint(2, 4), rng.choice(tuple(DIRECTIONS))
    radius = 0.38 / count * rng.uniform(0.75, 1.0)
    radius = min(radius, 0.15)
    actors = []
    for n in range(count):
        start, end = _path(rng, where, radius, (n + 0.5) / count)
        actors.append(Actor(kind, start, end, (radius, radius)))
    phrase = kind.phrase(count)
    return actors, [
        Question(rng.choice(DESCRIBE), capital(f"{phrase} move {where}."), (phrase, f"move {where}")),
        Question("What moves?", capital(phrase + "."), (phrase,)),
        _where_to(rng, kind, count, where),
        _count(rng, count),
        Question(f"How many {plural(kind.name)} are there?", f"There are {NUMBER_WORDS[count]} {plural(kind.name)}.",
                 (f"{NUMBER_WORDS[count]} {plural(kind.name)}",)),
    ]  # fmt: skip


def _size(rng: random.Random, ground: str) -> tuple[list[Actor], list[Question]]:
    kind = a_kind(rng, ground)
    small, large = rng.uniform(0.06, 0.1), rng.uniform(0.26, 0.36)
    grows = rng.random() < 0.5
    place = (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))
    verb = _verb(kind, 1, "grow" if grows else "shrink")
    radius = (small, large) if grows else (large, small)
    phrase = kind.phrase()
    return [Actor(kind, place, place, radius)], [
        Question(rng.choice(DESCRIBE), capital(f"{phrase} {verb}."), (phrase, verb)),
        Question(f"What does the {kind.name} do?" if plural(kind.name) != kind.name else f"What do the {kind.name} do?",
                 f"The {kind.name} {verb}.", (verb,)),
        _count(rng, 1),
    ]  # fmt: skip


def _two(rng: random.Random, ground: str) -> tuple[list[Actor], list[Question]]:
    first, second = a_kind(rng, ground), a_kind(rng, ground)
    while second.name == first.name:
        second = a_kind(rng, ground)
    where = rng.choice(tuple(DIRECTIONS))
    r1, r2 = rng.uniform(0.1, 0.16), rng.uniform(0.1, 0.16)
    lanes = [rng.uniform(0.2, 0.3), rng.uniform(0.7, 0.8)]
    rng.shuffle(lanes)
    start, end = _path(rng, where, r1, lanes[0])
    mover = Actor(first, start, end, (r1, r1))
    verb, a, b = _verb(first, 1, "move"), first.phrase(), second.phrase()
    if rng.random() < 0.5:
        place = rng.uniform(0.25, 0.75)
        spot = (place, lanes[1]) if DIRECTIONS[where][0] else (lanes[1], place)
        still = _verb(second, 1, "stay")
        return [mover, Actor(second, spot, spot, (r2, r2))], [
            Question(rng.choice(DESCRIBE), capital(f"{a} {verb} {where} and {b} {still} still."),
                     (f"{a} {verb} {where}", f"{b} {still} still")),
            Question("What moves?", capital(a + "."), (a,)),
            Question("What stays still?", capital(b + "."), (b,)),
            _where_to(rng, first, 1, where),
            _count(rng, 2),
        ]  # fmt: skip
    axis = [d for d in DIRECTIONS if (DIRECTIONS[d][0] != 0) == (DIRECTIONS[where][0] != 0)]
    other = rng.choice(axis)
    start, end = _path(rng, other, r2, lanes[1])
    pair = sorted(((first, where), (second, other)), key=lambda entry: entry[0].name)
    clauses = [f"{k.phrase()} {_verb(k, 1, 'move')} {d}" for k, d in pair]
    return [mover, Actor(second, start, end, (r2, r2))], [
        Question(rng.choice(DESCRIBE), capital(" and ".join(clauses) + "."), tuple(clauses)),
        _where_to(rng, first, 1, where),
        _where_to(rng, second, 1, other),
        _count(rng, 2),
    ]


def _pair(rng: random.Random, ground: str) -> tuple[list[Actor], list[Question]]:
    """Like `_two`, but seldom do both move the same way."""
    actors, questions = _two(rng, ground)
    while actors[0].motion == actors[1].motion and rng.random() < 0.6:
        actors, questions = _two(rng, ground)
    return actors, questions


def contrasts(rng: random.Random, film: Film) -> list[tuple[Question, Question]]:
    """Pairs of questions about the two things of a film, of which only one's answer is right for each."""
    if len(film.actors) != 2 or film.actors[0].kind.name == film.actors[1].kind.name:
        return []
    first, second = rng.sample(film.actors, 2)
    pairs = [(_does(first), _does(second))]
    if "stay" not in (first.motion, second.motion):
        pairs.append((_where_to(rng, first.kind, 1, first.motion), _where_to(rng, second.kind, 1, second.motion)))
    if first.motion != second.motion:
        pairs.append((_who(first), _who(second)))
    rng.shuffle(pairs)
    return pairs


def _does(actor: Actor) -> Question:
    stays = actor.motion == "stay"
    verb = _verb(actor.kind, 1, "stay" if stays else "move")
    what = f"{verb} still" if stays else f"{verb} {actor.motion}"
    do = "does" if verb.endswith("s") else "do"
    return Question(f"What {do} the {actor.kind.name} do?", f"The {actor.kind.name} {what}.", (what,))


def _who(actor: Actor) -> Question:
    phrase = actor.kind.phrase()
    does = "stays still" if actor.motion == "stay" else f"moves {actor.motion}"
    return Question(f"What {does}?", capital(phrase + "."), (phrase,))


def _verb(kind: Kind, count: int, verb: str) -> str:
    """`moves`, or `move` for several and for scissors."""
    return verb if count > 1 or (plural(kind.name) == kind.name and kind.name.endswith("s")) else verb + "s"


def _where_to(rng: random.Random, kind: Kind, count: int, where: str) -> Question:
    verb = _verb(kind, count, "move")
    noun = kind.name if count == 1 else plural(kind.name)
    do = "does" if verb.endswith("s") else "do"
    text = rng.choice(
        (f"Where {do} the {noun} move?", f"Which way {do} the {noun} move?", f"Where {do} the {noun} go?")
    )
    return Question(text, f"The {noun} {verb} {where}.", (where,))


def _count(rng: random.Random, count: int) -> Question:
    text = rng.choice(("How many things are there?", "How many things do you see?", "How many objects are there?"))
    answer = "There is one thing." if count == 1 else f"There are {NUMBER_WORDS[count]} things."
    return Question(text, answer, (NUMBER_WORDS[count],))


def draw_film(
    rng: random.Random,
    film: Film,
    studio: Studio,
    frames: list[int] | None = None,
    marks: list[list[Mark]] | None = None,
) -> list[Image.Image]:
    """The named frames (all of them by default); `marks` takes what is where in each, and from the second on what it
    does."""
    wide, high = rng.choice(((4, 3), (16, 9), (1, 1), (3, 4)))
    area = rng.uniform(170, 320) ** 2
    width, height = int((area * wide / high) ** 0.5) // 2 * 2, int((area * high / wide) ** 0.5) // 2 * 2
    ground = background(rng, film.background, width, height)
    scale = min(width, height)
    looks = [(tint(rng, a.kind.colour) if a.kind.is_shape else None, rng.uniform(-0.15, 0.15), rng.random() < 0.3)
             for a in film.actors]  # fmt: skip
    quality = rng.randint(30, 90) if rng.random() < 0.5 else 0
    grain = rng.uniform(1, 7) if rng.random() < 0.3 else 0.0
    noise = np.random.default_rng(rng.getrandbits(32))
    pictures = []
    for n in range(film.length) if frames is None else frames:
        t = n / max(1, film.length - 1)
        image = ground.copy()
        found: list[Mark] = []
        for actor, (fill, turn, mirrored) in zip(film.actors, looks, strict=True):
            x = (actor.start[0] + (actor.end[0] - actor.start[0]) * t) * width
            y = (actor.start[1] + (actor.end[1] - actor.start[1]) * t) * height
            radius = (actor.radius[0] + (actor.radius[1] - actor.radius[0]) * t) * scale
            motion = actor.motion if pictures else ""
            found.append(Mark(LABELS[actor.kind.name], actor.kind.colour, x, y, radius, motion))
            if fill is not None:
                mask = shape_mask(actor.kind.name, radius, turn)
                image.paste(fill, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)
            else:
                paste_stamp(image, actor.kind.name, x, y, radius, turn * 57.3, mirrored, studio)
        if marks is not None:
            marks.append(found)
        if grain:
            pixels = np.asarray(image, np.float32) + noise.normal(0, grain, (height, width, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        pictures.append(jpeg(image, quality) if quality else image)
    return pictures


__all__ = ["MOSTLY_PAIRS", "MOTIONS", "Actor", "Film", "contrasts", "draw_film", "make_film", "sampled"]
