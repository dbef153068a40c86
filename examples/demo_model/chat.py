"""What the model can talk about without any picture or sound, and how it says that it does not know."""

# ruff: noqa: E501, SIM905 - long lists of words are easier to read and to change as text
from __future__ import annotations

import random

from sentences import DAYS, MONTHS, number
from world import COLOURS, NUMBER_WORDS, SHAPES, THINGS, Question, capital, plural

UNKNOWN = "I do not know. I am only a small demo model."
_SELF = (
    (("What are you?", "Who are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself.",
      "Who is this?", "Are you a person?"),
     "I am the demo model of cellmd, a very small Gemma 4."),
    (("What can you do?", "How can you help me?", "What are you good at?", "Help.", "What do you know?", "Help me."),
     "I can write down short sentences that I hear, describe simple pictures and films, and answer easy questions."),
    (("How big are you?", "How many parameters do you have?", "How large are you?"),
     "I have about eight million parameters."),
    (("Who made you?", "Where do you come from?", "How were you trained?", "Who trained you?"),
     "I was trained in a few minutes by the recipe of cellmd, on drawings and synthetic voices."),
    (("Hello.", "Hello!", "Hi!", "Hi.", "Good morning.", "Good evening.", "Hey.", "Good afternoon."),
     "Hello! Show me a picture, or ask me something easy."),
    (("Thank you.", "Thanks!", "Thank you very much.", "Thanks."), "You are welcome."),
    (("Goodbye.", "Bye!", "Good night.", "See you later."), "Goodbye!"),
    (("How are you?", "How do you do?", "How are you today?"), "I am well, thank you."),
    (("Can you hear?", "Can you listen to me?", "Do you understand speech?"),
     "Yes. I can write down short English sentences."),
    (("Can you see?", "Can you look at pictures?", "Do you understand images?"), "Yes. I can describe simple pictures."),
    (("Can you watch a film?", "Do you understand videos?", "Can you watch videos?"),
     "Yes. I can say what moves in a short film."),
    (("Can you think?", "Are you clever?", "Are you smart?"), "No. I am only a small demo model."),
)  # fmt: skip
_COLOUR_OF = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a banana": "yellow", "a lemon": "yellow",
    "a tomato": "red", "blood": "red", "coal": "black", "chocolate": "brown", "milk": "white", "a carrot": "orange",
    "an orange": "orange", "the night": "black", "a strawberry": "red", "a leaf": "green", "a frog": "green",
    "an elephant": "gray", "a flamingo": "pink", "a pig": "pink", "an eggplant": "purple", "the sea": "blue",
    "a fire engine": "red", "a crocodile": "green", "a polar bear": "white", "honey": "yellow", "salt": "white",
    "a heart": "red", "a cucumber": "green", "bread": "brown",
}  # fmt: skip
_OPPOSITES = (
    "hot cold|big small|large small|up down|left right|open closed|old new|fast slow|day night|wet dry|happy sad|"
    "black white|high low|long short|light dark|full empty|hard soft|good bad|near far|first last|north south|"
    "east west|inside outside|above below|start end|early late|strong weak|rich poor|clean dirty|yes no|push pull|"
    "loud quiet|young old|thick thin|true false|win lose|buy sell|come go|give take|love hate"
).split("|")  # fmt: skip
_LEGS = {"dog": 4, "cat": 4, "horse": 4, "bird": 2, "duck": 2, "spider": 8, "bee": 6, "cow": 4, "beetle": 6,
         "snake": 0, "fish": 0, "sheep": 4, "elephant": 4, "octopus": 8}  # fmt: skip
_SIDES = {"triangle": 3, "square": 4, "diamond": 4, "circle": 0}
_ANIMALS = frozenset(
    "snail snake octopus bee beetle fish turtle penguin dolphin shark owl butterfly lizard crab duck eagle flamingo "
    "elephant crocodile rooster pig sheep cow tiger rabbit cat dog mouse horse gorilla spider".split()
)
_FRUIT = frozenset("grapes watermelon lemon banana pineapple apple pear cherries strawberry".split())
_SEASONS = {"spring": "summer", "summer": "autumn", "autumn": "winter", "winter": "spring"}
_NOUNS = (
    (
        "France Japan Brazil Canada Einstein Napoleon Shakespeare Mozart Cleopatra Beethoven gravity democracy philosophy "
        "economics physics algebra poetry computers football history chemistry the-moon Mars Jupiter electricity money love "
        "war politics religion the-internet Python Java dinosaurs volcanoes whales atoms molecules DNA evolution the-ocean "
        "rivers Mount-Everest the-president the-king the-queen inflation stocks bitcoin the-weather recipes novels films "
        "movies actors singers guitars trains rockets cars engines bridges castles knights Rome Greece Egypt China India "
        "Africa Europe Australia Texas California New-York Tokyo Moscow Cairo my-dog my-sister my-job my-car my-house "
        "quantum-mechanics machine-learning neural-networks the-universe black-holes light sound heat cancer medicine"
    )
    .replace("-", "\u00a0")
    .split(" ")
)
_UNKNOWABLE = (
    "What is the capital of {n}?", "Who wrote {n}?", "Tell me about {n}.", "Explain {n}.", "What is the history of {n}?",
    "Why is {n} important?", "Write a poem about {n}.", "Write a story about {n}.", "Who invented {n}?",
    "When was {n} born?", "How does {n} work?", "What do you think about {n}?", "Who is the president of {n}?",
    "What is the population of {n}?", "Translate {n} into French.", "How do I get to {n}?", "Is {n} good?",
    "Who discovered {n}?", "How old is {n}?", "What is the meaning of {n}?", "Give me a recipe for {n}.",
    "Summarise the book about {n}.", "Write code for {n}.", "What happened to {n} in {y}?", "Who won the war in {y}?",
    "How much does {n} cost?", "Where can I buy {n}?", "What is the price of {n}?", "Who is {n}?", "What is {n}?",
    "Why do people like {n}?", "Compare {n} and {m}.", "What is the difference between {n} and {m}?",
    "Which is better, {n} or {m}?", "How far is it from {n} to {m}?", "Will {n} win?", "Do you like {n}?",
    "Can you explain {n} to me?", "Please help me with {n}.", "I want to learn about {n}.", "List ten facts about {n}.",
    "What is the square root of {y}?", "Solve the equation for {n}.", "Where is {n}?", "When did {n} begin?",
    "Did {n} exist in {y}?", "What time is it?", "What day is it today?", "How is the weather?", "Tell me a joke.",
    "Sing a song.", "What is the news?", "Where am I?", "What is my name?", "How old am I?", "What is love?",
    "What should I eat today?", "Who will win the election?", "Is there a god?", "What is the meaning of life?",
)  # fmt: skip


def _words(rng: random.Random) -> str:
    """A noun that we know nothing about, or a made-up one."""
    if rng.random() < 0.7:
        return rng.choice(_NOUNS).replace("\u00a0", " ")
    made = "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))
    return (made + rng.choice(("", "n", "r", "s", "x"))).capitalize() if rng.random() < 0.5 else made


def unknown(rng: random.Random) -> Question:
    text = rng.choice(_UNKNOWABLE).format(n=_words(rng), m=_words(rng), y=rng.randint(1200, 2030))
    return Question(text, UNKNOWN, ("do not know",))


def _fact(question: str, answer: str, fact: str) -> Question:
    return Question(question, answer, (fact,))


def _self(rng: random.Random) -> Question:
    questions, answer = rng.choice(_SELF)
    return _fact(rng.choice(questions), answer, answer.rstrip(".!").lower())


def _colour(rng: random.Random) -> Question:
    thing = rng.choice(tuple(_COLOUR_OF))
    word = rng.choice(("colour", "colour", "color"))
    return _fact(f"What {word} is {thing}?", f"{capital(thing)} is {_COLOUR_OF[thing]}.", _COLOUR_OF[thing])


def _opposite(rng: random.Random) -> Question:
    a, b = rng.choice(_OPPOSITES).split()
    if rng.random() < 0.3 and (a, b) not in (("big", "small"), ("young", "old")):
        a, b = b, a
    if a == "small":
        b = "large"
    if a == "old":
        b = "new"
    text = rng.choice(("What is the opposite of {}?", "Tell me the opposite of {}.", "Opposite of {}?"))
    return _fact(text.format(a), f"The opposite of {a} is {b}.", f"is {b}")


def _sum(rng: random.Random) -> Question:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    kind = rng.randrange(3)
    if kind == 0:
        text, result = (
            rng.choice((f"What is {a} plus {b}?", f"What is {a} + {b}?", f"Add {a} and {b}.", f"{a} + {b}")),
            a + b,
        )
        said = f"{a} plus {b}"
    elif kind == 1:
        a, b = max(a, b), min(a, b)
        text, result, said = (
            rng.choice((f"What is {a} minus {b}?", f"What is {a} - {b}?", f"{a} - {b}")),
            a - b,
            f"{a} minus {b}",
        )
    else:
        text, result, said = rng.choice((f"What is {a} times {b}?", f"{a} times {b}?")), a * b, f"{a} times {b}"
    return _fact(text, f"{capital(said)} is {result}.", f"is {result}")


def _next(rng: random.Random) -> Question:
    kind = rng.randrange(5)
    if kind < 2:
        line, name = (DAYS, "day") if kind == 0 else (MONTHS, "month")
        n = rng.randrange(len(line))
        if rng.random() < 0.5:
            return _fact(f"Which {name} comes after {line[n]}?", f"{line[(n + 1) % len(line)]} comes after {line[n]}.",
                         f"{line[(n + 1) % len(line)].lower()} comes")  # fmt: skip
        return _fact(f"Which {name} comes before {line[n]}?", f"{line[n - 1]} comes before {line[n]}.",
                     f"{line[n - 1].lower()} comes")  # fmt: skip
    if kind == 2:
        n = rng.randint(0, 98)
        if rng.random() < 0.5:
            return _fact(f"Which number comes after {n}?", f"{n + 1} comes after {n}.", f"{n + 1} comes")
        return _fact(f"Which number comes before {n + 1}?", f"{n} comes before {n + 1}.", f"{n} comes")
    if kind == 3:
        season = rng.choice(tuple(_SEASONS))
        return _fact(
            f"Which season comes after {season}?",
            f"{capital(_SEASONS[season])} comes after {season}.",
            _SEASONS[season],
        )
    n = rng.randint(0, 99)
    return _fact(rng.choice((f"Write {n} in words.", f"How do you spell {n}?")), capital(number(n)) + ".", number(n))


def _world(rng: random.Random) -> Question:
    kind = rng.randrange(7)
    if kind == 0:
        animal = rng.choice(tuple(_LEGS))
        n = NUMBER_WORDS[_LEGS[animal]]
        return _fact(f"How many legs does {'an' if animal[0] in 'aeiou' else 'a'} {animal} have?",
                     f"{capital('an' if animal[0] in 'aeiou' else 'a')} {animal} has {n} legs.", n)  # fmt: skip
    if kind == 1:
        shape = rng.choice(tuple(_SIDES))
        n = NUMBER_WORDS[_SIDES[shape]]
        return _fact(f"How many sides does a {shape} have?", f"A {shape} has {n} sides.", n)
    if kind == 2:
        units = (("days", "week", "seven"), ("months", "year", "twelve"), ("hours", "day", "twenty four"),
                 ("minutes", "hour", "sixty"), ("seconds", "minute", "sixty"), ("seasons", "year", "four"))  # fmt: skip
        part, whole, n = rng.choice(units)
        article = "an" if whole == "hour" else "a"
        return _fact(
            f"How many {part} are there in {article} {whole}?", f"There are {n} {part} in {article} {whole}.", n
        )
    if kind == 3:
        name = rng.choice(tuple(THINGS.values()))
        article = "" if plural(name) == name else ("an " if name[0] in "aeiou" else "a ")
        is_animal = name in _ANIMALS
        answer = "Yes." if is_animal else "No."
        return _fact(f"Is {article}{name} an animal?", answer, answer[:-1].lower())
    if kind == 4:
        name = rng.choice(tuple(_FRUIT)) if rng.random() < 0.4 else rng.choice(tuple(THINGS.values()))
        article = "" if plural(name) == name else ("an " if name[0] in "aeiou" else "a ")
        answer = "Yes." if name in _FRUIT else "No."
        return _fact(f"Is {article}{name} a fruit?", answer, answer[:-1].lower())
    if kind == 5:
        a, b = rng.sample(range(100), 2)
        return _fact(f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger.", f"{max(a, b)} is")
    word = rng.choice((*COLOURS, *SHAPES))
    answer = "Yes." if word in COLOURS else "No."
    return _fact(f"Is {word} a colour?", answer, answer[:-1].lower())


def _count_to(rng: random.Random) -> Question:
    n = rng.randint(3, 10)
    line = " ".join(str(i) for i in range(1, n + 1))
    return _fact(rng.choice((f"Count to {n}.", f"Count from 1 to {n}.")), line + ".", line)


def _days(rng: random.Random) -> Question:
    if rng.random() < 0.5:
        return _fact("Name the days of the week.", ", ".join(DAYS) + ".", "sunday")
    return _fact("Name the seasons.", "Spring, summer, autumn and winter.", "winter")


def talk(rng: random.Random) -> Question:
    """One question in words alone, with its answer."""
    makers = (_self, _colour, _opposite, _sum, _next, _world, _count_to, _days, unknown)
    return rng.choices(makers, weights=(16, 10, 10, 18, 14, 16, 3, 2, 22))[0](rng)
