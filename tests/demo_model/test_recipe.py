"""The demo model's recipe: its grammar, its pictures and films, its prompts."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "src" / "cellmd" / "demo" / "checkpoint"
sys.path.insert(0, str(ROOT / "examples" / "demo_model"))

import world  # noqa: E402
from evaluate import distance, has_fact  # noqa: E402
from films import MOSTLY_PAIRS, MOTIONS, contrasts, draw_film, make_film, sampled  # noqa: E402
from prompts import Prompter, film_media, image_media  # noqa: E402
from sentences import held_out, normalise, sentence, vocabulary  # noqa: E402
from stages import FLOAT, FLOAT_CTC, STAGES  # noqa: E402
from world import Question, make_scene  # noqa: E402

from data import FRAMES, IGNORED, Maker, target_size  # noqa: E402
from tokenizer import ID, SPECIALS  # noqa: E402


def test_the_grammar_has_four_hundred_words_and_says_no_other() -> None:
    words = vocabulary()
    assert len(words) >= 400
    rng = random.Random(0)
    for _ in range(2000):
        assert set(normalise(sentence(rng))) <= words


def test_one_sentence_in_twenty_is_held_out() -> None:
    rng = random.Random(1)
    share = sum(held_out(sentence(rng)) for _ in range(4000)) / 4000
    assert 0.03 < share < 0.08


def test_answers_contain_their_facts() -> None:
    for n in range(400):
        for question in (*make_scene(random.Random(n)).questions, *make_film(random.Random(n)).questions):
            assert all(has_fact(question.answer, fact) for fact in question.facts), question


def test_a_scene_is_drawn_the_same_from_the_same_seed() -> None:
    maker = Maker(CHECKPOINT, None, None)
    numbers = [n for n in range(40) if all(i.kind.is_shape for i in make_scene(random.Random(f"image:test:{n}")).items)]
    first, second = (maker.image("test", numbers[:3]) for _ in range(2))
    assert (first["patches"] == second["patches"]).all()
    assert (first["ids"] == second["ids"]).all()


def test_films_move() -> None:
    maker = Maker(CHECKPOINT, None, None)
    for n in range(60):
        rng = random.Random(n)
        film = make_film(rng)
        if all(a.kind.is_shape for a in film.actors):
            frames = draw_film(rng, film, maker.studio, sampled(film.length))
            assert len(frames) == 4
            assert frames[0].tobytes() != frames[3].tobytes()


def test_the_held_out_scenes_stay_as_they_are() -> None:
    """What the bundled media show was drawn from seeds of the test; new ways to train must not shift them."""
    truth = json.loads((CHECKPOINT.parent / "media" / "truth.json").read_text())
    for name, make in (("scene.jpg", make_scene), ("film.mp4", make_film)):
        assert make(random.Random(truth[name]["made"])).questions[0].answer == truth[name]["answer"]


def test_pairs_of_questions_have_two_answers_and_agree_with_the_description() -> None:
    together = apart = 0
    for n in range(400):
        rng = random.Random(n)
        film, scene = make_film(rng, MOSTLY_PAIRS), make_scene(rng, world.MOSTLY_PAIRS)
        for pair in (*contrasts(rng, film), *world.contrasts(rng, scene)):
            assert pair[0].text != pair[1].text
            assert pair[0].answer != pair[1].answer
            assert all(has_fact(q.answer, fact) for q in pair for fact in q.facts)
        for first, second in contrasts(rng, film):
            if first.text.startswith("What do"):
                assert all(fact in film.questions[0].answer for q in (first, second) for fact in q.facts)
        if len(film.actors) == 2 and film.actors[0].kind.name != film.actors[1].kind.name:
            ways = {actor.motion for actor in film.actors}
            together, apart = together + (len(ways) == 1), apart + (len(ways) == 2)
    assert apart > 150
    assert apart > 4 * together


def test_soft_tokens_are_told_what_moves_from_the_second_frame_on() -> None:
    maker = Maker(CHECKPOINT, None, None)
    for n in range(60):
        film = make_film(random.Random(f"film:pairs:{n}"), MOSTLY_PAIRS)
        if all(a.kind.is_shape for a in film.actors):
            cells = maker.film("pairs", [n])["cells"][0]
            assert cells.shape[:2] == (FRAMES, 3)
            assert (cells[0, 2] == IGNORED).all()
            for later in cells[1:, 2]:
                assert {MOTIONS[m] for m in later if m != IGNORED} == {a.motion for a in film.actors}


def test_stages_are_functions_of_the_step() -> None:
    for stage in STAGES.values():
        rates = [stage.rate(step) for step in range(stage.steps)]
        assert max(rates) == stage.peak
        assert rates[0] < 0.01
        assert 0 < rates[-1] < 0.001
        falling = rates[int(stage.steps * stage.level_until) :]
        assert falling == sorted(falling, reverse=True)
        first = stage.variant(0, 0.9)
        assert first == (FLOAT_CTC if stage.ctc_until else FLOAT)
        late = [stage.variant(stage.steps - 1, n / 1000) for n in range(1000)]
        assert {v: late.count(v) for v in (FLOAT, 64, 128, 0)} == {FLOAT: 250, 64: 350, 128: 200, 0: 200}
        assert set(stage.workers) == set(stage.capacity) == {"audio", "image", "film"}


@pytest.mark.parametrize(
    ("size", "wanted"), [((400, 400), (384, 384)), ((640, 360), (528, 288)), ((100, 300), (192, 672))]
)
def test_target_sizes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert target_size(*size) == wanted


def test_word_distance() -> None:
    assert distance(list("abc"), list("axcd")) == 2
    assert distance([], ["a"]) == 1


def test_prompts_are_those_of_the_chat_template() -> None:
    import jinja2
    from tokenizers import Tokenizer

    template = jinja2.Environment().from_string((CHECKPOINT / "chat_template.jinja").read_text())
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    prompter = Prompter(CHECKPOINT)
    asked = [Question("What is this?", "A cat.", ()), Question("What colour?", "Red.", ())]
    picture, film = "<|image|>" * 3, "<|video|>" * 3
    for seed in range(12):
        for media, kind, run in (
            (None, "", ""),
            (image_media(3), "image", f"<|image>{picture}<image|>"),
            (film_media(3, (0.0, 61.5)), "video", f"00:00 <|image>{film}<image|> 01:01 <|image>{film}<image|>"),
        ):
            ids, mask = prompter.turns(asked, media, random.Random(seed))
            after = kind and ids.index(tokenizer.encode("What", add_special_tokens=False).ids[0]) < ids.index(
                ID["<|image>"]
            )
            parts = [{"type": "text", "text": asked[0].text}]
            if kind:
                parts.insert(1 if after else 0, {"type": kind})
            messages = [
                {"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": asked[1].text}, {"role": "assistant", "content": "Red."},
            ]  # fmt: skip
            text = template.render(messages=messages, bos_token="<bos>").removesuffix("\n")
            text = text.replace(f"<|{kind}|>", run, 1) if kind else text
            if tokenizer.encode("system", add_special_tokens=False).ids[0] in ids[:4]:
                continue
            assert ids == tokenizer.encode(text, add_special_tokens=False).ids
            answered = [i for i, m in zip(ids, mask, strict=True) if m]
            assert prompter.decode([i for i in answered if i != ID["<turn|>"]]) == "A cat.Red."


def test_all_special_tokens_are_there() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= 4096
    assert [tokenizer.token_to_id(t) for t in SPECIALS] == list(range(len(SPECIALS)))
    assert tokenizer.decode(tokenizer.encode("naïve 東京 🙂", add_special_tokens=False).ids) == "naïve 東京 🙂"
