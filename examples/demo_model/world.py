"""What the pictures and films are made of, and how it is put into words.

A scene is a list of `Item`s; everything said about it is derived from them here, so a picture, its
description, and the questions and answers about it cannot disagree.
"""

# ruff: noqa: E501, SIM905 - long lists of words are easier to read and to change as text
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36), "green": (34, 150, 52), "blue": (32, 72, 214), "yellow": (246, 218, 30),
    "orange": (248, 136, 18), "purple": (130, 42, 168), "pink": (250, 140, 190), "brown": (124, 72, 34),
    "black": (18, 18, 20), "white": (248, 248, 246), "gray": (134, 136, 138),
}  # fmt: skip
SIZES = ("small", "large")
# Short names of the pictures in emoji-datasource-google, and what we call them.
THINGS: dict[str, str] = {
    name.partition("=")[0]: (name.partition("=")[2] or name.replace("_", " "))
    for name in (
        "cactus tulip sunflower mushroom snail snake octopus bee ladybug=beetle fish turtle penguin dolphin shark owl "
        "butterfly lizard crab duck eagle flamingo elephant crocodile rooster pig2=pig sheep cow2=cow tiger2=tiger "
        "rabbit2=rabbit cat2=cat dog2=dog mouse2=mouse racehorse=horse gorilla spider palm_tree evergreen_tree=tree "
        "maple_leaf=leaf corn tomato eggplant grapes watermelon lemon banana pineapple apple pear cherries strawberry "
        "hamburger pizza fries doughnut cake carrot broccoli onion avocado cheese_wedge=cheese egg pretzel icecream "
        "croissant teapot spoon house tent european_castle=castle rocket helicopter train bus car tractor bike=bicycle "
        "airplane=plane boat anchor umbrella snowman snowflake fire rainbow alarm_clock=clock hourglass watch balloon "
        "gift christmas_tree teddy_bear kite soccer=football basketball trophy guitar trumpet drum_with_drumsticks=drum "
        "musical_keyboard=piano crown tophat eyeglasses necktie shirt jeans dress socks boot gem=jewel bulb bomb key lock "
        "bell scissors hammer magnet ladder basket chair bed candle book pencil2=pencil camera tv=television battery "
        "microscope ghost"
    ).split()
}
BACKGROUNDS = ("white", "black", "gray", "blue", "green", "yellow", "pink", "purple", "brown", "orange", "red")
WORDS = (
    "OPEN CLOSED STOP GO EXIT ENTER PUSH PULL HELP SALE FREE BUS TAXI TRAIN HOTEL BANK PARK ZOO CAFE BAR SHOP "
    "FOOD MILK TEA COFFEE BREAD WATER JUICE PIZZA SOUP CAKE FISH HOT COLD NEW OLD UP DOWN LEFT RIGHT NORTH SOUTH "
    "EAST WEST DANGER SLOW FAST QUIET WAIT WALK TOYS BOOKS MUSIC ART FILM GAMES LUCKY HELLO WELCOME THANKS PLEASE "
    "LOVE PEACE HOPE MOON SUN STAR RAIN SNOW WIND FIRE ROAD BRIDGE RIVER BEACH GARDEN HOUSE DOOR KEY LIFT STAIRS "
    "TOILET POST NEWS RADIO PHOTO PRIVATE PARKING SCHOOL DOCTOR POLICE TICKETS LUNCH DINNER"
).split()
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
DESCRIBE = (
    "Describe this image.", "Describe this picture.", "What is in this picture?", "What do you see?",
    "What does the image show?", "Tell me what you see.", "Describe the image in one sentence.",
    "What is in the image?", "Please describe the picture.", "Say what is in the picture.",
)  # fmt: skip
_PLURALS = {
    "mouse": "mice", "sheep": "sheep", "fish": "fish", "cherries": "cherries", "fries": "fries", "grapes": "grapes",
    "leaf": "leaves", "knife": "knives", "eyeglasses": "eyeglasses", "jeans": "jeans",
    "socks": "socks", "scissors": "scissors",
    "cheese": "cheese", "broccoli": "broccoli", "octopus": "octopuses",
}  # fmt: skip
_MASS = frozenset(["cherries", "fries", "grapes", "eyeglasses", "jeans", "socks", "scissors", "cheese", "broccoli"])


@dataclass(frozen=True)
class Kind:
    """A sort of thing: `red star`, or `cat` (which has no colour that we speak of)."""

    name: str
    colour: str = ""
    size: str = ""

    @property
    def is_shape(self) -> bool:
        return self.colour != ""

    def phrase(self, count: int = 1) -> str:
        """`a large red circle`, `three red circles`, `a cat`, `scissors`."""
        words = [w for w in (self.size, self.colour) if w]
        if count == 1:
            noun = " ".join([*words, self.name])
            if self.name in _MASS:
                return noun
            return ("an " if noun[0] in "aeiou" else "a ") + noun
        return " ".join([NUMBER_WORDS[count], *words, plural(self.name)])


@dataclass(frozen=True)
class Item:
    """One thing in a picture: its kind and its box in units of the picture (centre, radius)."""

    kind: Kind
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the facts (phrases) that a right answer contains."""

    text: str
    answer: str
    facts: tuple[str, ...]


@dataclass
class Scene:
    """Items (or a sign) on a background, with all that can be said about them."""

    items: list[Item] = field(default_factory=list)
    background: str = "white"
    sign: str = ""
    questions: list[Question] = field(default_factory=list)


def plural(name: str) -> str:
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def shape_kind(rng: random.Random, background: str, sized: bool) -> Kind:
    """A shape that can be told from the background."""
    close = {background, {"white": "", "gray": "white", "orange": "brown", "red": "orange", "brown": "orange",
                          "purple": "blue", "pink": "white", "yellow": "white"}.get(background, "")}  # fmt: skip
    colour = rng.choice([c for c in COLOURS if c not in close])
    return Kind(rng.choice(SHAPES), colour, rng.choice(SIZES) if sized else "")


def thing_kind(rng: random.Random) -> Kind:
    return Kind(rng.choice(tuple(THINGS.values())))


def a_kind(rng: random.Random, background: str, sized: bool = False) -> Kind:
    return shape_kind(rng, background, sized) if rng.random() < 0.6 else thing_kind(rng)


def radius_of(rng: random.Random, kind: Kind) -> float:
    if kind.size == "small":
        return rng.uniform(0.085, 0.11)
    if kind.size == "large":
        return rng.uniform(0.19, 0.25)
    return rng.uniform(0.13, 0.19)


# --- making scenes ---------------------------------------------------------------------------------------------------


# How often a scene is of each sort: one thing, two that differ, some alike, two kinds, a sign.
SORTS = (24, 26, 16, 16, 18)
MOSTLY_PAIRS = (14, 44, 12, 14, 16)


def make_scene(rng: random.Random, sorts: tuple[int, ...] = SORTS) -> Scene:
    """One picture's worth of facts."""
    maker = rng.choices((_single, _pair, _group, _mixed, _sign), weights=sorts)[0]
    scene = maker(rng)
    scene.questions = ask(rng, scene)
    return scene


def _single(rng: random.Random) -> Scene:
    background = rng.choice(BACKGROUNDS)
    kind = a_kind(rng, background, sized=True) if rng.random() < 0.6 else thing_kind(rng)
    radius = radius_of(rng, kind) if kind.is_shape else rng.uniform(0.17, 0.36)
    reach = radius + 0.02
    item = Item(kind, rng.uniform(reach, 1 - reach), rng.uniform(reach, 1 - reach), radius)
    return Scene([item], background)


def _pair(rng: random.Random) -> Scene:
    background = rng.choice(BACKGROUNDS)
    first, second = a_kind(rng, background, sized=True), a_kind(rng, background, sized=True)
    while second.name == first.name:
        second = a_kind(rng, background, sized=True)
    r1, r2 = radius_of(rng, first), radius_of(rng, second)
    along1, along2 = rng.uniform(0.24, 0.28), rng.uniform(0.72, 0.76)
    across1 = rng.uniform(0.3, 0.7)
    across2 = min(0.72, max(0.28, across1 + rng.uniform(-0.12, 0.12)))
    if rng.random() < 0.5:
        return Scene([Item(first, along1, across1, r1), Item(second, along2, across2, r2)], background)
    return Scene([Item(first, across1, along1, r1), Item(second, across2, along2, r2)], background)


def _cells(rng: random.Random, count: int) -> list[tuple[float, float, float]]:
    """`count` places (x, y, radius) in a loose grid, so that nothing overlaps."""
    side = 2 if count <= 4 else 3
    places = rng.sample([(i, j) for i in range(side) for j in range(side)], count)
    radius = 0.36 / side
    slack = 0.5 / side - radius - 0.01
    return [
        ((i + 0.5) / side + rng.uniform(-slack, slack), (j + 0.5) / side + rng.uniform(-slack, slack), radius)
        for i, j in places
    ]


def _group(rng: random.Random) -> Scene:
    background = rng.choice(BACKGROUNDS)
    kind = a_kind(rng, background)
    while kind.name in _MASS:
        kind = a_kind(rng, background)
    count = rng.randint(2, 6)
    return Scene([Item(kind, x, y, r * rng.uniform(0.7, 1.0)) for x, y, r in _cells(rng, count)], background)


def _mixed(rng: random.Random) -> Scene:
    background = rng.choice(BACKGROUNDS)
    kinds: list[Kind] = []
    while len(kinds) < 2:
        kind = a_kind(rng, background)
        if kind.name not in _MASS and all(kind.name != k.name for k in kinds):
            kinds.append(kind)
    first, second = rng.choice(((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (3, 3)))
    cells = _cells(rng, first + second)
    return Scene(
        [Item(kinds[n >= first], x, y, r * rng.uniform(0.75, 1.0)) for n, (x, y, r) in enumerate(cells)], background
    )


def _sign(rng: random.Random) -> Scene:
    text = rng.choice(WORDS) if rng.random() < 0.6 else str(number_for_sign(rng))
    return Scene([], rng.choice(BACKGROUNDS), sign=text)


def number_for_sign(rng: random.Random, unseen: bool = False) -> int:
    """A number of one to three digits; every tenth three-digit number is kept for the test (`unseen`)."""
    while True:
        n = rng.choice((rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 999), rng.randint(100, 999)))
        if (n >= 100 and n % 10 == (n // 100 + n // 10) % 10) == unseen:
            return n


# --- talking about them ----------------------------------------------------------------------------------------------


def relation(a: Item, b: Item) -> str:
    """Where `a` is as seen from `b`."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def counts(items: Sequence[Item]) -> dict[Kind, int]:
    """How many of each kind, the more numerous first, then by name."""
    tally: dict[Kind, int] = {}
    for item in items:
        tally[item.kind] = tally.get(item.kind, 0) + 1
    return dict(sorted(tally.items(), key=lambda entry: (-entry[1], entry[0].name)))


def describe(scene: Scene) -> tuple[str, tuple[str, ...]]:
    """The one sentence for a scene, and the facts in it."""
    if scene.sign:
        if scene.sign.isdigit():
            return f"The number {scene.sign}.", (f"number {scene.sign}",)
        return f"A sign that says {scene.sign}.", (f"says {scene.sign.lower()}",)
    tally = counts(scene.items)
    if len(scene.items) == 2 and len(tally) == 2 and scene.items[0].kind.size + scene.items[1].kind.size != "":
        return _describe_pair(*scene.items)
    if len(scene.items) == 2 and len(tally) == 2 and not any(i.kind.is_shape for i in scene.items):
        return _describe_pair(*scene.items)
    phrases = [kind.phrase(n) for kind, n in tally.items()]
    if len(scene.items) == 1:
        facts = (phrases[0], f"{scene.background} background")
        article = "an" if scene.background == "orange" else "a"
        return capital(f"{phrases[0]} on {article} {scene.background} background."), facts
    return capital(" and ".join(phrases) + "."), tuple(phrases)


def _describe_pair(first: Item, second: Item) -> tuple[str, tuple[str, ...]]:
    a, b, where = first.kind.phrase(), second.kind.phrase(), relation(first, second)
    return capital(f"{a} {where} {b}."), (a, b, f"{first.kind.name} {where}")


def ask(rng: random.Random, scene: Scene) -> list[Question]:
    """The description and every question we know to ask, in random order after the first."""
    answer, facts = describe(scene)
    asked = [Question(rng.choice(DESCRIBE), answer, facts)]
    more = _ask_sign(rng, scene) if scene.sign else _ask_items(rng, scene)
    rng.shuffle(more)
    return asked + more


def _ask_sign(rng: random.Random, scene: Scene) -> list[Question]:
    text = scene.sign
    reply = Question(
        rng.choice(("What does the sign say?", "Read the text.", "What is written here?", "What does it say?",
                    "Read the sign.", "What is written in the picture?")),
        f"It says {text}.", (f"says {text.lower()}",),
    )  # fmt: skip
    if text.isdigit():
        return [reply, Question(rng.choice(("What number is this?", "Which number do you see?", "What is the number?")),
                                f"It is {text}.", (f"is {text}",))]  # fmt: skip
    return [reply]


def _ask_items(rng: random.Random, scene: Scene) -> list[Question]:
    items, tally = scene.items, counts(scene.items)
    questions: list[Question] = []
    colour = rng.choice(("colour", "colour", "color"))
    for kind, n in tally.items():
        noun, be = (kind.name, "is") if n == 1 and kind.name not in _MASS else (plural(kind.name), "are")
        if kind.is_shape:
            facts = (kind.colour,)
            questions.append(Question(f"What {colour} {be} the {noun}?", f"The {noun} {be} {kind.colour}.", facts))
        if kind.name not in _MASS:
            phrase = kind_count(kind, n)
            ask_for = rng.choice(("How many {} are there?", "How many {} do you see?", "Count the {}."))
            verb = "is" if n == 1 else "are"
            questions.append(Question(ask_for.format(plural(kind.name)), f"There {verb} {phrase}.", (phrase,)))
    questions.append(
        Question(rng.choice((f"What {colour} is the background?", f"Which {colour} is the background?")),
                 f"The background is {scene.background}.", (scene.background,))
    )  # fmt: skip
    questions.append(_ask_presence(rng, tally))
    if len(items) == 1:
        kind = items[0].kind
        questions.append(
            Question(rng.choice(("What is this?", "What is it?", "Name this.")), capital(kind.phrase() + "."),
                     (kind.phrase(),))
        )  # fmt: skip
    elif len(items) == 2 and len(tally) == 2:
        questions += _ask_pair(rng, *items)
    total = rng.choice(("How many things are there?", "How many things do you see?", "How many objects are there?"))
    number = NUMBER_WORDS[len(items)]
    if not any(kind.name in _MASS for kind in tally):
        there = "There is one thing." if len(items) == 1 else f"There are {number} things."
        questions.append(Question(total, there, (number,)))
    return questions


def kind_count(kind: Kind, n: int) -> str:
    return f"{NUMBER_WORDS[n]} {kind.name if n == 1 else plural(kind.name)}"


def _ask_presence(rng: random.Random, tally: dict[Kind, int]) -> Question:
    kind = rng.choice(list(tally))
    if rng.random() < 0.5:
        phrase, answer = (f"{kind.colour} {kind.name}" if kind.is_shape else kind.name), "Yes."
    else:
        names = {k.name for k in tally}
        other = rng.choice([n for n in (*SHAPES, *THINGS.values()) if n not in names])
        swapped = rng.choice([c for c in COLOURS if c != kind.colour])
        phrase, answer = (f"{swapped} {kind.name}" if kind.is_shape and rng.random() < 0.6 else other), "No."
    article = "" if phrase.split()[-1] in _MASS else ("an " if phrase[0] in "aeiou" else "a ")
    be = "Are" if phrase.split()[-1] in _MASS and phrase.endswith("s") else "Is"
    return Question(f"{be} there {article}{phrase}?", answer, (answer[:-1].lower(),))


def _beside(first: Item, second: Item) -> Question:
    phrase = first.kind.phrase()
    return Question(f"What is {relation(first, second)} the {second.kind.name}?", capital(phrase + "."), (phrase,))


def _where(first: Item, second: Item) -> Question:
    where = relation(first, second)
    return Question(f"Where is the {first.kind.name}?", capital(f"{where} the {second.kind.name}."), (where,))


def _ask_pair(rng: random.Random, first: Item, second: Item) -> list[Question]:
    if rng.random() < 0.5:
        first, second = second, first
    questions = [_beside(first, second), _where(first, second)]
    if first.kind.is_shape and second.kind.is_shape and first.kind.size != second.kind.size:
        larger = first if first.kind.size == "large" else second
        questions.append(
            Question(f"Which is larger, the {first.kind.name} or the {second.kind.name}?",
                     f"The {larger.kind.name} is larger.", (f"{larger.kind.name} is larger",))
        )  # fmt: skip
    return questions


def contrasts(rng: random.Random, scene: Scene) -> list[tuple[Question, Question]]:
    """Pairs of questions about two things in a picture, of which only one's answer is right for each."""
    items = scene.items
    if len(items) != 2 or items[0].kind.name == items[1].kind.name:
        return []
    both = [(_beside(a, b), _where(a, b)) for a, b in (items, items[::-1])]
    pairs = list(zip(*both, strict=True))
    rng.shuffle(pairs)
    return [(a, b) if rng.random() < 0.5 else (b, a) for a, b in pairs]
