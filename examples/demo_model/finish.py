"""Completes the checkpoint folder, and makes the demo's own sound, picture and film from held-out seeds.

python finish.py --weights RUN/model.safetensors --checkpoint CHECKPOINT --media MEDIA --stamps STAMPS --fonts FONTS
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

from export import write_config
from films import draw_film, make_film
from media import film_bytes, sound_bytes
from model import config
from pictures import draw_scene
from prompts import TRANSCRIBE
from world import make_scene

from data import Maker


def make_media(maker: Maker, out: Path, sentence: int, scene: int, film: int) -> dict[str, dict[str, str]]:
    """`sentence.wav`, `scene.jpg` and `film.mp4`, and what is true of them."""
    out.mkdir(parents=True, exist_ok=True)
    text, voice, sound = maker.utterance("trained", sentence)
    (out / "sentence.wav").write_bytes(sound_bytes(sound, form="wav"))
    rng = random.Random(f"image:test:{scene}")
    facts = make_scene(rng)
    draw_scene(rng, facts, maker.studio, plain=True).save(out / "scene.jpg", quality=90)
    rng = random.Random(f"film:test:{film}")
    story = make_film(rng)
    (out / "film.mp4").write_bytes(film_bytes(draw_film(rng, story, maker.studio), story.fps))
    truth = {
        "sentence.wav": {"question": TRANSCRIBE[0], "answer": text, "made": f"audio:trained:{sentence}, {voice.name}"},
        "scene.jpg": {
            "question": "Describe this image.",
            "answer": facts.questions[0].answer,
            "made": f"image:test:{scene}",
        },
        "film.mp4": {
            "question": "Describe this video.",
            "answer": story.questions[0].answer,
            "made": f"film:test:{film}",
        },
    }
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return truth


def make_recordings(maker: Maker, out: Path, count: int) -> None:
    """The few sentences that the fast guard hears."""
    out.mkdir(parents=True, exist_ok=True)
    listed = {}
    for n in range(count):
        for split in ("trained", "unheard"):
            text, voice, sound = maker.utterance(split, n)
            name = f"{split}-{n}.flac"
            (out / name).write_bytes(sound_bytes(sound))
            listed[name] = {"text": text, "voice": voice.name}
    (out / "sentences.json").write_text(json.dumps(listed, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--media", type=Path)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--fonts", type=Path)
    parser.add_argument("--seeds", type=int, nargs=3, default=(3, 0, 0), metavar=("SENTENCE", "SCENE", "FILM"))
    arguments = parser.parse_args()
    write_config(config(), arguments.checkpoint)
    if arguments.weights:
        shutil.copyfile(arguments.weights, arguments.checkpoint / "model.safetensors")
    maker = Maker(arguments.checkpoint, arguments.stamps, arguments.fonts)
    if arguments.media:
        print(json.dumps(make_media(maker, arguments.media, *arguments.seeds), indent=1))
    if arguments.recordings:
        make_recordings(maker, arguments.recordings, 6)


if __name__ == "__main__":
    main()
