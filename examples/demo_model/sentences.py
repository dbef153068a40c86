"""The grammar of the spoken sentences: commands, dates, numbers, short statements.

`sentence(rng)` draws one. Whether a sentence belongs to training or to the held-out test is a
property of its words alone (`held_out`), so no split file is needed.
"""

# ruff: noqa: SIM905 - long lists of words are easier to read and to change as text
from __future__ import annotations

import hashlib
import random
import re

ROOMS = "kitchen bedroom bathroom garage office garden cellar attic library hallway workshop".split()
DEVICES = "light lamp fan heater radio television oven kettle camera printer speaker computer".split()
NAMES = (
    "Alice Robert Maria Daniel Susan Thomas Helen Peter Anna George Laura Oliver Emma David Sophie "
    "Martin Victor Julia Simon Grace"
).split()
PLACES = (
    "station airport museum market hospital school harbour castle bridge bakery theatre church park "
    "village river beach forest hotel stadium factory"
).split()
CITIES = "London Paris Berlin Madrid Rome Vienna Dublin Boston Chicago Denver Athens Lisbon".split()
GOODS = (
    "apples bread butter cheese milk sugar coffee rice tomatoes potatoes onions carrots bananas lemons "
    "honey chocolate water pepper salt soap candles batteries paper pencils eggs"
).split()
MONTHS = ("January February March April May June July August September October November December").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
UNITS = "zero one two three four five six seven eight nine".split()
TEENS = ("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ANIMALS = (
    "dog cat horse rabbit mouse bird sheep duck goat fox wolf bear lion tiger elephant monkey frog snake spider eagle"
).split()
ADJECTIVES = ("small large young old hungry tired happy angry quiet clever friendly lazy brave gentle strange").split()
COLOURS = "red green blue yellow orange purple pink brown black white golden silver".split()
THINGS = (
    "table chair window door bottle basket blanket mirror ladder bicycle hammer guitar piano picture "
    "letter newspaper umbrella jacket wallet suitcase pillow carpet clock cup"
).split()
VERBS = "slept waited played jumped danced walked rested listened".split()
ACTIONS = "found lost painted carried cleaned repaired borrowed bought opened closed dropped wanted".split()
WHERE = "under behind near above inside beside".split()
WEATHER = "sunny cloudy rainy windy stormy foggy snowy warm cold frosty".split()
JOBS = "doctor teacher farmer baker painter sailor driver singer lawyer writer engineer nurse".split()
SUBJECTS = "history music science geography chemistry English mathematics".split()
FOODS = "soup salad pizza chicken fish pasta pancakes cake sandwiches vegetables".split()
TASKS = (
    "call the doctor|water the plants|feed the cat|pay the rent|clean the windows|wash the car|"
    "send the letter|book a table|buy a ticket|lock the door|charge the phone|empty the basket"
).split("|")
SPORTS = "football tennis hockey chess golf basketball volleyball cricket".split()
UNITS_OF = "metres kilometres minutes hours pounds dollars degrees percent litres grams".split()


def number(n: int) -> str:
    """0 to 999 in words, as it is spoken."""
    if n < 10:
        return UNITS[n]
    if n < 20:
        return TEENS[n - 10]
    if n < 100:
        return TENS[n // 10 - 2] + ("" if n % 10 == 0 else " " + UNITS[n % 10])
    head = UNITS[n // 100] + " hundred"
    return head if n % 100 == 0 else head + " and " + number(n % 100)


def clock_time(rng: random.Random) -> str:
    hour = number(rng.randint(1, 12))
    kind = rng.randrange(6)
    if kind == 0:
        return f"half past {hour}"
    if kind == 1:
        return f"quarter past {hour}"
    if kind == 2:
        return f"quarter to {hour}"
    if kind == 3:
        return f"{hour} o'clock"
    return f"{hour} {number(rng.choice((10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 55)))}"


def date(rng: random.Random) -> str:
    month = rng.choice(MONTHS)
    day = rng.choice(ORDINALS) if rng.random() < 0.8 else "twenty " + rng.choice(ORDINALS[:9])
    return f"the {day} of {month}" if rng.random() < 0.5 else f"{month} the {day}"


def any_number(rng: random.Random) -> str:
    return number(rng.choice((rng.randint(0, 20), rng.randint(2, 99), rng.randint(100, 999))))


def digits(rng: random.Random) -> str:
    return " ".join(UNITS[rng.randrange(10)] for _ in range(rng.randint(3, 5)))


_SLOTS = {
    "room": ROOMS, "device": DEVICES, "name": NAMES, "place": PLACES, "city": CITIES, "goods": GOODS,
    "month": MONTHS, "day": DAYS, "animal": ANIMALS, "adj": ADJECTIVES, "colour": COLOURS,
    "thing": THINGS, "verb": VERBS, "did": ACTIONS, "where": WHERE, "weather": WEATHER, "job": JOBS,
    "subject": SUBJECTS, "food": FOODS, "task": TASKS, "sport": SPORTS, "unit": UNITS_OF,
    "time": clock_time, "date": date, "n": any_number, "digits": digits,
    "few": lambda rng: number(rng.randint(2, 12)),
}  # fmt: skip

_TEMPLATES = """
turn on the {device} in the {room}
turn off the {room} {device}
switch the {device} to {colour}
open the {room} door
close the {room} window please
set the heater in the {room} to {few} degrees
set an alarm for {time}
wake me at {time} on {day}
set a timer for {n} minutes
stop the music in the {room}
play some quiet music in the {room}
turn the volume up
turn the volume down please
remind me to {task} on {day}
remind {name} to {task} at {time}
add {goods} and {goods} to the shopping list
we need {few} {goods} and some {goods}
please buy {goods} at the market
call {name} at the office
call {digits}
send a message to {name}
tell {name} that dinner is ready
the meeting starts at {time}
my birthday is on {date}
the letter arrived on {date}
today is {day} {date}
the concert is on {date} at {time}
the train to {city} leaves at {time}
the bus from {city} arrives at {time}
the next flight to {city} is on {day}
my number is {digits}
the code is {digits}
the room number is {n}
the answer is {n}
{n} plus {few} is more than {few}
the bridge is {n} {unit} long
it costs {n} dollars
the shop is {n} {unit} from the {place}
there are {n} people in the {place}
the {adj} {animal} {verb} {where} the {thing}
a {colour} {animal} {verb} in the {place}
{few} {adj} {animal}s {verb} near the {place}
{name} {did} a {colour} {thing}
{name} {did} the {adj} {animal}
{name} and {name} live in {city}
{name} lives near the {place} in {city}
{name} is a {job} in {city}
the {job} {did} my {thing}
the {thing} is {where} the {thing}
the {colour} {thing} is in the {room}
it will be {weather} in {city} on {day}
yesterday it was {weather} and {weather}
tomorrow will be {weather}
is it {weather} in {city} today
where is my {colour} {thing}
who {did} the {thing}
how far is the {place}
what time does the {place} open
when does the train to {city} leave
can you help me in the {room}
she reads the newspaper every morning
he drinks {few} cups of coffee every day
we had {food} and {food} for dinner
they played {sport} in the park on {day}
i like {food} with {goods}
i would like {few} tickets for the {place}
do you want {food} or {food}
our {job} comes from {city}
the {subject} lesson begins at {time}
{name} teaches {subject} at the school
my brother plays {sport} and my sister plays {sport}
please bring the {thing} back on {day}
the {place} is closed until {date}
turn left at the {place} and walk {few} minutes
the weather in {city} is {weather}
thank you very much for the {thing}
good morning {name} how are you
good night {name} sleep well
show me the way to the {place}
read the news about {city}
take a picture of the {animal}
the {animal} is {adj} and {adj}
""".strip().splitlines()

_FIXED = frozenset(t for t in _TEMPLATES if "{" not in t)
_SLOT = re.compile(r"\{(\w+)\}")


def sentence(rng: random.Random) -> str:
    """One sentence, written as it is to be transcribed."""

    def fill(match: re.Match[str]) -> str:
        source = _SLOTS[match[1]]
        return source(rng) if callable(source) else rng.choice(source)

    template = rng.choice(_TEMPLATES)
    words = _SLOT.sub(fill, template)
    words = re.sub(r"\bsheeps\b", "sheep", re.sub(r"\bfoxs\b", "foxes", words))
    words = re.sub(r"\bmouses\b", "mice", re.sub(r"\bwolfs\b", "wolves", words))
    words = re.sub(r"\ba(?= [aeiouAEIOU])", "an", words)
    words = re.sub(r"\bi\b", "I", words)
    question = template.split()[0] in {"is", "where", "who", "how", "what", "when", "can", "do"}
    return words[0].upper() + words[1:] + ("?" if question else ".")


def is_fixed(text: str) -> bool:
    """True for the templates without slots. They are no test: held out, some of their words would be unknown."""
    return text.rstrip(".?").lower() in _FIXED


def held_out(text: str) -> bool:
    """True for one sentence in twenty: those are never spoken in training."""
    return hashlib.sha256(text.encode()).digest()[0] < 13


def normalise(text: str) -> list[str]:
    """The words of a transcript, without case and punctuation."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).split()


def vocabulary() -> set[str]:
    """Every word the grammar can say."""
    words: set[str] = set()
    for template in _TEMPLATES:
        words.update(_SLOT.sub(" ", template).lower().split())
    for source in _SLOTS.values():
        if not callable(source):
            words.update(w.lower() for entry in source for w in entry.split())
    words.update(a + "s" for a in ANIMALS)
    words.update(w.lower() for w in UNITS + TEENS + TENS + ORDINALS + ["hundred", "and", "half", "past"])
    words.update(["quarter", "o'clock", "an", "mice", "wolves", "foxes"])
    return words - {"mouses", "wolfs", "foxs", "sheeps", ""}
