"""A little more training for the language model alone, on a CPU: where things are, and which of two things moves.

    python polish.py --checkpoint CHECKPOINT --weights RUN --stamps STAMPS --fonts FONTS --out RUN2 --minutes 30

The towers stay as they are, so their soft tokens are computed once for each sample and kept. Most samples are pairs
of things, in pictures and in films; the rest are of every kind, so that nothing is forgotten.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from data import FILM_LENGTH, FRAMES, IMAGE_LENGTH, POOL, SOFT_TOKENS, Maker, patches_of
from films import draw_film, make_film, sampled
from forward import Static, use_fast_parts
from model import new_model
from optimizer import Muon
from pictures import draw_scene
from prompts import film_media, image_media, padded
from quantize import quantizable, straight_through
from safetensors.torch import load_file, save_file
from sound import LogMel, soft_tokens
from torch.func import functional_call
from train import splice
from world import _ask_pair, make_scene

Sample = tuple[torch.Tensor, int, list[tuple[np.ndarray, np.ndarray]]]


class Source:
    """Samples with their soft tokens."""

    def __init__(self, maker: Maker, static: Static, seed: int) -> None:
        self.maker, self.static, self.seed, self.number = maker, static, seed, 0
        self.logmel = LogMel()
        self.kept: dict[str, deque[Sample]] = {"image": deque(maxlen=2500), "film": deque(maxlen=1200)}
        self.sounds: list[tuple[torch.Tensor, np.ndarray, np.ndarray]] = []

    def _soft(self, pictures: list, background: int = 0) -> tuple[torch.Tensor, int]:  # type: ignore[type-arg]
        found = [patches_of(p) for p in pictures]
        patches = torch.from_numpy(np.stack([f[0] for f in found]))
        grid = torch.tensor([f[1] for f in found])
        with torch.no_grad():
            soft = self.static.vision(patches, grid)
        return soft, int(grid[0].prod()) // POOL**2

    def image(self) -> None:
        rng = random.Random(f"image:polish:{self.seed}:{self.number}")
        self.number += 1
        scene = make_scene(rng)
        while rng.random() < 0.8 and not (len(scene.items) == 2 and "above" in _words(scene) + _words(scene)):
            scene = make_scene(rng)
        soft, tokens = self._soft([draw_scene(rng, scene, self.maker.studio)])
        asked = list(scene.questions)
        if len(scene.items) == 2 and scene.items[0].kind.name != scene.items[1].kind.name:
            for _ in range(3):
                asked += _ask_pair(rng, *scene.items) * 2
        rng.shuffle(asked)
        self._keep("image", rng, soft, tokens, asked, image_media(tokens), IMAGE_LENGTH)

    def film(self) -> None:
        rng = random.Random(f"film:polish:{self.seed}:{self.number}")
        self.number += 1
        film = make_film(rng)
        while rng.random() < 0.85 and len({a.kind for a in film.actors}) < 2:
            film = make_film(rng)
        taken = sampled(film.length)
        soft, tokens = self._soft(draw_film(rng, film, self.maker.studio, taken))
        asked = [*film.questions, *[q for q in film.questions if "move" in q.text or "go?" in q.text]]
        rng.shuffle(asked)
        media = film_media(tokens, [i / film.fps for i in taken])
        self._keep("film", rng, soft, tokens, asked, media, FILM_LENGTH)

    def _keep(self, kind, rng, soft, tokens, asked, media, length):  # type: ignore[no-untyped-def]
        talks = [padded(*self.maker.prompter.turns([q], media, rng), length) for q in asked]
        kept = [t for t in talks if t is not None]
        self.kept[kind].append((soft.reshape(1, -1, soft.shape[-1]), tokens, kept))

    def sound(self, count: int) -> None:
        arrays = {k: torch.from_numpy(v) for k, v in self.maker.audio("train", range(10**6, 10**6 + count)).items()}
        length = arrays["length"].long()
        mel, mask = self.logmel(arrays["wave"].float() / 32767, length)
        ids, marks = splice(arrays, soft_tokens(length), 168)
        with torch.no_grad():
            for row in range(count):
                soft = self.static.audio(mel[row : row + 1].to(torch.bfloat16), mask[row : row + 1])
                self.sounds.append((soft, ids[row].numpy(), marks[row].numpy()))

    def batch(self, kind: str, rows: int, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """Soft tokens, tokens a run, ids and mask."""
        if kind == "audio":
            taken = rng.sample(self.sounds, rows)
            ids, marks = (torch.from_numpy(np.stack([t[n] for t in taken])) for n in (1, 2))
            return torch.cat([t[0] for t in taken]), torch.full((rows,), SOFT_TOKENS * FRAMES), ids.long(), marks.bool()
        picked = [(s, rng.choice(s[2])) for s in rng.choices(self.kept[kind], k=rows)]
        ids = torch.from_numpy(np.stack([t[0] for _, t in picked])).long()
        marks = torch.from_numpy(np.stack([t[1] for _, t in picked])).bool()
        return torch.cat([s[0] for s, _ in picked]), torch.tensor([s[1] for s, _ in picked]), ids, marks


def _words(scene) -> str:  # type: ignore[no-untyped-def]
    return " above " if any(q.text.startswith("Where") for q in scene.questions) else ""


class Answering(torch.nn.Module):
    """Loss and right answers of a batch, for `functional_call`."""

    def __init__(self, static: Static) -> None:
        super().__init__()
        self.static = static

    def forward(self, soft, per_run, ids, mask):  # type: ignore[no-untyped-def]
        return self.static.answers(self.static.hidden(ids, soft, per_run), ids, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder with model and remainder safetensors")
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--first", type=int, nargs=3, default=(60, 24, 64), metavar=("IMAGE", "FILM", "AUDIO"))
    parser.add_argument("--fresh", type=int, nargs=2, default=(4, 2), help="new pictures and films a step")
    parser.add_argument("--batch", type=int, nargs=4, default=(16, 10, 4, 6))
    parser.add_argument("--muon", type=float, default=0.004)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin = time.time()
    arguments.out.mkdir(parents=True, exist_ok=True)
    merged = load_file(arguments.weights / "model.safetensors")
    extra = load_file(arguments.weights / "remainder.safetensors")
    model = new_model()
    state = {k: v.float() + extra[k].float() if k in extra else v.float() for k, v in merged.items()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    use_fast_parts()
    static = Static(model)
    maker = Maker(arguments.checkpoint, arguments.stamps, arguments.fonts)
    answering = Answering(static)
    tuned = {n: p for n, p in answering.named_parameters() if ".language_model.layers." in n or "per_layer_model" in n}
    masters = {n: torch.nn.Parameter(p.detach().clone()) for n, p in tuned.items()}
    static.to(torch.bfloat16)
    for p in answering.parameters():
        p.requires_grad_(False)
    matrices = [p for p in masters.values() if p.ndim == 2]
    vectors = [p for p in masters.values() if p.ndim != 2]
    muon, adam = Muon(matrices), torch.optim.AdamW(vectors, lr=arguments.rate, weight_decay=0.0)
    source = Source(maker, static, arguments.seed)
    for _ in range(arguments.first[0]):
        source.image()
    for _ in range(arguments.first[1]):
        source.film()
    source.sound(arguments.first[2])
    texts = {k: torch.from_numpy(v) for k, v in maker.text("train", range(20_000)).items()}
    print(json.dumps({"t": round(time.time() - begin), "ready": True}), flush=True)
    rng, step, sums = random.Random(arguments.seed), 0, {}
    seconds, start = arguments.minutes * 60 - 15, time.time()
    weights = {"image": 1.0, "film": 1.0, "audio": 0.5, "text": 0.3}
    while time.time() - begin < seconds:
        progress = (time.time() - start) / max(1.0, seconds - (start - begin))
        rate = min(1.0, (step + 1) / 20) * (1 - progress)
        for _ in range(arguments.fresh[0]):
            source.image()
        for _ in range(arguments.fresh[1]):
            source.film()
        variant = rng.choice((-1, 64, 64, 128, 0))
        for p in masters.values():
            p.grad = None
        for kind, rows in zip(weights, arguments.batch, strict=True):
            if kind == "text":
                index = torch.randint(len(texts["ids"]), (rows,))
                batch = (None, None, texts["ids"][index].long(), texts["mask"][index].bool())
            else:
                batch = source.batch(kind, rows, rng)
            lent = {}
            for name, p in masters.items():
                quantized = variant >= 0 and quantizable(name, p)
                lent[name] = (straight_through(p, variant) if quantized else p).to(torch.bfloat16)
            out = functional_call(answering, lent, batch)
            (out["loss"] * weights[kind]).backward()
            sums.setdefault(kind, []).append((float(out["loss"]), float(out["right"])))
        torch.nn.utils.clip_grad_norm_(list(masters.values()), 1.0)
        muon.step(arguments.muon * rate)
        for group in adam.param_groups:
            group["lr"] = arguments.rate * rate
        adam.step()
        step += 1
        if step % 10 == 0:
            shown = {k: [round(sum(x) / len(v), 4) for x in zip(*v, strict=True)] for k, v in sums.items()}
            counts = {k: len(v) for k, v in source.kept.items()}
            print(json.dumps({"t": round(time.time() - begin), "step": step, **shown, "samples": counts}), flush=True)
            sums = {}
        if step % 40 == 0:
            write(merged, masters, arguments.out)
    write(merged, masters, arguments.out)
    print(json.dumps({"done": True, "step": step}), flush=True)


def write(merged: dict[str, torch.Tensor], masters: dict[str, torch.nn.Parameter], out: Path) -> None:
    """The checkpoint with the tuned weights in place."""
    state = dict(merged)
    remainder = {}
    for name, p in masters.items():
        key = name.removeprefix("static.model.")
        if key not in state:
            raise KeyError(key)
        state[key] = p.detach().to(torch.bfloat16).contiguous()
        remainder[key] = (p.detach() - state[key].float()).to(torch.bfloat16).contiguous()
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    save_file(remainder, out / "remainder.safetensors")


if __name__ == "__main__":
    main()
