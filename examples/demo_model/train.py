"""Trains the demo model on one GPU, within a given time.

    python train.py --checkpoint CHECKPOINT --stamps STAMPS --fonts FONTS --out RUN --seconds 900

Worker processes draw and speak all the while (see `data.py`); the trainer keeps the latest of their work in GPU
memory and draws batches from it. Forward and backward of each kind of batch are captured once as CUDA graphs,
in several variants: float with the auxiliary CTC loss (at first), float, and through INT4 weights with one scale
for 64 columns, 128 columns or a row (towards the end). The learning rate falls to zero at the deadline.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import torch
from export import calibrated, save
from forward import Static, ctc_loss, use_fast_parts
from model import new_model, parameters
from optimizer import Muon, split
from quantize import quantizable, straight_through
from safetensors.torch import load_file
from sound import LogMel, augment, soft_tokens, spec_mask
from torch.func import functional_call

import data
from tokenizer import ID

FLOAT, FLOAT_CTC = -1, -2
KINDS = ("audio", "vision", "text")
CAPACITY = {"audio": 50_000, "image": 30_000, "film": 5_000}
TALKS = 2
Arrays = dict[str, torch.Tensor]


class Ring:
    """The latest samples of one kind, in GPU memory."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.arrays: Arrays = {}
        self.filled = self.total = 0

    def put(self, arrays: Arrays) -> None:
        rows = len(next(iter(arrays.values())))
        if not self.arrays:
            self.arrays = {
                k: torch.zeros(self.capacity, *v.shape[1:], dtype=v.dtype, device=self.device)
                for k, v in arrays.items()
            }
        start = self.total % self.capacity
        fit = min(rows, self.capacity - start)
        for key, value in arrays.items():
            self.arrays[key][start : start + fit].copy_(value[:fit])
        self.total += fit
        self.filled = min(self.capacity, self.total)

    def draw(self, rows: int, generator: torch.Generator) -> Arrays:
        index = torch.randint(self.filled, (rows,), generator=generator, device=self.device)
        return {key: value.index_select(0, index) for key, value in self.arrays.items()}


class Feeder(threading.Thread):
    """Moves finished shards from files to the rings."""

    def __init__(
        self, folder: Path, rings: dict[str, Ring], lock: threading.Lock, device: torch.device, part: int, parts: int
    ) -> None:
        super().__init__(daemon=True)
        self.part, self.parts = part, parts
        self.folder, self.rings, self.lock, self.device = folder, rings, lock, device
        self.stopped = False

    def run(self) -> None:
        side = torch.cuda.Stream() if self.device.type == "cuda" else None
        while not self.stopped:
            files = [f for f in self.folder.glob("*.npz") if int(f.stem.split("-")[1]) % self.parts == self.part]
            files.sort(key=lambda f: f.stem.split("-")[1])
            if not files:
                time.sleep(0.02)
            for file in files[:8]:
                kind = file.name.split("-")[0]
                with np.load(file) as stored:
                    arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
                file.unlink()
                if side is not None:
                    with torch.cuda.stream(side):
                        arrays = {key: value.to(self.device) for key, value in arrays.items()}
                    side.synchronize()
                    for value in arrays.values():
                        value.record_stream(torch.cuda.default_stream())
                with self.lock:
                    self.rings[kind].put(arrays)


class Batcher:
    """Fills the fixed input buffers of a step."""

    def __init__(self, rings: dict[str, Ring], texts: Arrays, sizes: dict[str, int], device: torch.device) -> None:
        self.rings, self.texts, self.sizes, self.device = rings, texts, sizes, device
        self.generator = torch.Generator(device).manual_seed(1)
        self.strength = 0.0
        self.logmel = LogMel().to(device)
        self.static: dict[str, Arrays] = {}

    def batch(self, kind: str) -> Arrays:
        made = {"audio": self._audio, "vision": self._vision, "text": self._text}[kind]()
        if kind not in self.static:
            self.static[kind] = {k: v.clone() for k, v in made.items()}
        for key, value in made.items():
            self.static[kind][key].copy_(value)
        return self.static[kind]

    def _audio(self) -> Arrays:
        drawn = self.rings["audio"].draw(self.sizes["audio"], self.generator)
        return self.audio_arrays(drawn)

    def audio_arrays(self, drawn: Arrays) -> Arrays:
        wave, length = drawn["wave"].float() / 32767, drawn["length"].long()
        wave, length = augment(wave, length, self.generator, self.strength)
        mel, mel_mask = self.logmel(wave, length)
        if self.strength >= 1:
            mel = spec_mask(mel, self.generator)
        tokens = soft_tokens(length)
        ids, mask = splice(drawn, tokens, data.AUDIO_LENGTH)
        return {
            "mel": mel,
            "mel_mask": mel_mask,
            "ids": ids,
            "mask": mask,
            "tokens": tokens,
            "target": drawn["target"].long(),
        }

    def _vision(self) -> Arrays:
        image = self.rings["image"].draw(self.sizes["image"], self.generator)
        film = self.rings["film"].draw(self.sizes["film"], self.generator)
        return self.image_arrays(image, "image") | self.image_arrays(film, "film")

    def image_arrays(self, drawn: Arrays, kind: str) -> Arrays:
        rows = len(drawn["grid"])
        first = torch.randint(data.CHOICES, (rows, 1), generator=self.generator, device=self.device)
        which = (first + torch.arange(TALKS, device=self.device)) % data.CHOICES
        at = torch.arange(rows, device=self.device)[:, None]
        return {
            f"{kind}_patches": drawn["patches"], f"{kind}_grid": drawn["grid"].long(), f"{kind}_cells": drawn["cells"],
            f"{kind}_ids": drawn["ids"][at, which].long(), f"{kind}_mask": drawn["mask"][at, which].bool(),
        }  # fmt: skip

    def _text(self) -> Arrays:
        index = torch.randint(
            len(self.texts["ids"]), (self.sizes["text"],), generator=self.generator, device=self.device
        )
        return {"ids": self.texts["ids"][index].long(), "mask": self.texts["mask"][index].bool()}


def splice(drawn: Arrays, tokens: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts `tokens` audio placeholders between what comes before and what comes after."""
    place = torch.arange(size, device=tokens.device)[None]
    start = drawn["before_length"].long()[:, None]
    end = start + tokens[:, None]
    before = drawn["before"].long().gather(1, place.clamp(max=drawn["before"].shape[1] - 1).expand(len(tokens), -1))
    late = (place - end).clamp(0, drawn["after"].shape[1] - 1)
    after, mask = drawn["after"].long().gather(1, late), drawn["after_mask"].bool().gather(1, late)
    ids = torch.where(place < start, before, torch.where(place < end, ID["<|audio|>"], after))
    return ids, mask & (place >= end)


def step_losses(static: Static, kind: str, batch: Arrays, ctc_weight: float) -> Arrays:
    """The losses of one kind of batch, and the share of answers that are right."""
    if kind == "audio":
        soft = static.audio(batch["mel"].to(soft_dtype(static)), batch["mel_mask"])
        out = static.answers(static.hidden(batch["ids"], soft, None), batch["ids"], batch["mask"])
        losses = {"audio": out["loss"], "audio_right": out["right"]}
        if ctc_weight:
            losses["ctc"] = ctc_loss(static.heads["sounds"](soft), batch["tokens"], batch["target"])
        return losses
    if kind == "text":
        out = static.answers(static.hidden(batch["ids"], None, None), batch["ids"], batch["mask"])
        return {"text": out["loss"], "text_right": out["right"]}
    losses = {}
    parts = [k for k in ("image", "film") if f"{k}_ids" in batch]
    patches = torch.cat([batch[f"{k}_patches"].flatten(0, 1) for k in parts])
    frames = {k: batch[f"{k}_patches"].shape[1] for k in parts}
    grid = torch.cat(
        [
            batch[f"{k}_grid"].repeat_interleave(frames[k], 0, output_size=batch[f"{k}_grid"].shape[0] * frames[k])
            for k in parts
        ]
    )
    soft, at = static.vision(patches, grid), 0
    for k in parts:
        rows, talks, size = batch[f"{k}_ids"].shape
        own = soft[at : at + rows * frames[k]].reshape(rows, 1, -1, soft.shape[-1])
        own = own.expand(-1, talks, -1, -1).flatten(0, 1)
        at += rows * frames[k]
        ids, mask = batch[f"{k}_ids"].view(-1, size), batch[f"{k}_mask"].view(-1, size)
        tokens = (batch[f"{k}_grid"].prod(-1) // data.POOL**2)[:, None].expand(-1, talks).flatten()
        out = static.answers(static.hidden(ids, own, tokens), ids, mask)
        losses |= {k: out["loss"], f"{k}_right": out["right"]}
    cells = torch.cat([batch[f"{k}_cells"].flatten(0, 1) for k in parts])
    losses["cells"] = static.cells(soft, cells)
    return losses


def soft_dtype(static: Static) -> torch.dtype:
    return static.model.model.audio_tower.output_proj.weight.dtype


class Routed(torch.nn.Module):
    """`step_losses` as a module, so that `functional_call` can lend it other weights."""

    def __init__(self, static: Static) -> None:
        super().__init__()
        self.static = static

    def forward(self, kind: str, batch: Arrays, ctc_weight: float) -> Arrays:
        return step_losses(self.static, kind, batch, ctc_weight)


WEIGHTS = {"audio": 1.0, "ctc": 0.5, "image": 1.0, "film": 0.8, "text": 0.4, "cells": 0.5}


class Engine:
    """Weights, gradients, and the captured steps."""

    def __init__(self, static: Static, device: torch.device) -> None:
        self.routed = Routed(static)
        self.device = device
        self.parameters = dict(self.routed.named_parameters())
        for p in self.parameters.values():
            p.grad = torch.zeros_like(p)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.graphs: dict[tuple[str, int], tuple[torch.cuda.CUDAGraph, Arrays]] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def lent(self, variant: int) -> Arrays:
        """The weights as the forward sees them: rounded to INT4 (if the variant says so) and to bfloat16."""
        out = {}
        for name, p in self.parameters.items():
            seen = p
            if variant >= 0 and ".heads." not in name and quantizable(name, p):
                seen = straight_through(p, variant)
            out[name] = seen.to(self.dtype)
        return out

    def forward(self, kind: str, batch: Arrays, variant: int) -> Arrays:
        ctc = WEIGHTS["ctc"] if variant == FLOAT_CTC else 0.0
        return functional_call(self.routed, self.lent(variant), (kind, batch, ctc))

    def run(self, kind: str, batch: Arrays, variant: int) -> Arrays:
        losses = self.forward(kind, batch, variant)
        total = sum(WEIGHTS[k] * v for k, v in losses.items() if k in WEIGHTS)
        total.backward()
        return {k: v.detach() for k, v in losses.items()}

    def capture(self, kind: str, batch: Arrays, variant: int) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                losses = self.run(kind, batch, variant)
        torch.cuda.current_stream().wait_stream(side)
        kept = {k: torch.zeros((), device=self.device) for k in losses}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            for key, value in self.run(kind, batch, variant).items():
                kept[key].copy_(value)
        self.graphs[kind, variant] = (graph, kept)

    def step(self, kind: str, batch: Arrays, variant: int) -> Arrays:
        if variant == FLOAT_CTC and kind != "audio":
            variant = FLOAT
        if (kind, variant) not in self.graphs:
            return self.run(kind, batch, variant)
        graph, kept = self.graphs[kind, variant]
        graph.replay()
        return kept


def learning_rate(progress: float, step: int) -> float:
    """Of the peak: up over 150 steps, level, then down to zero in a straight line from 40 % of the time."""
    return min(1.0, (step + 1) / 150) * min(1.0, max(0.0, (1 - progress) / 0.6))


def variant_at(progress: float, choice: float) -> int:
    """CTC at first; INT4 weights three times in four from 60 % on."""
    if progress < 0.4:
        return FLOAT_CTC
    if progress < 0.6 or choice < 0.25:
        return FLOAT
    return 64 if choice < 0.6 else (128 if choice < 0.8 else 0)


def replay_ms(engine: Engine, batcher: Batcher, kind: str, times: int = 10) -> tuple[float, float]:
    """Milliseconds to fill a batch, and to run forward and backward on it."""
    took = []
    for act in (lambda: batcher.batch(kind), lambda: engine.step(kind, batcher.static[kind], FLOAT)):
        torch.cuda.synchronize()
        start = time.time()
        for _ in range(times):
            act()
        torch.cuda.synchronize()
        took.append(round((time.time() - start) / times * 1000, 1))
    return took[0], took[1]


def start_workers(arguments: argparse.Namespace, folder: Path) -> list[multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("spawn")
    places = [str(p) for p in (folder, arguments.checkpoint, arguments.stamps, arguments.fonts)]
    workers = []
    for kind, count in zip(("audio", "image", "film"), arguments.workers, strict=True):
        for n in range(count):
            worker = context.Process(
                target=data.work, args=(kind, n + arguments.first_shard, count, *places), daemon=True
            )
            worker.start()
            workers.append(worker)
    return workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with the tokenizer's files")
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spool", type=Path, default=Path("/dev/shm/cellmd-demo"))
    parser.add_argument("--seconds", type=float, default=900, help="may be changed on the way by a file OUT/seconds")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--rate", type=float, default=2e-3, help="of AdamW")
    parser.add_argument("--muon", type=float, default=0.015, help="rate of Muon")
    parser.add_argument(
        "--batch", type=int, nargs=4, default=(128, 64, 16, 64), metavar=("AUDIO", "IMAGE", "FILM", "TEXT")
    )
    parser.add_argument("--workers", type=int, nargs=3, default=(5, 6, 3), metavar=("AUDIO", "IMAGE", "FILM"))
    parser.add_argument("--first-shard", type=int, default=0, help="start of the training data, to go on elsewhere")
    parser.add_argument("--fill", type=int, nargs=3, default=(5000, 3000, 600), help="samples to wait for at first")
    parser.add_argument("--shares", type=float, nargs=3, default=(1, 1, 1), metavar=("AUDIO", "VISION", "TEXT"),
                        help="in what share of the steps each kind takes part")  # fmt: skip
    parser.add_argument("--texts", type=int, default=60_000)
    parser.add_argument(
        "--resume", type=Path, nargs="*", default=[], help="weights (and their remainders) to go on from"
    )
    arguments = parser.parse_args()
    begin = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.spool.mkdir(parents=True, exist_ok=True)
    workers = start_workers(arguments, arguments.spool)
    log = (arguments.out / "log.jsonl").open("a")

    def note(**entry: object) -> None:
        line = json.dumps({"t": round(time.time() - begin, 1), **entry})
        print(line, flush=True)
        log.write(line + "\n")
        log.flush()

    maker = data.Maker(arguments.checkpoint, arguments.stamps, arguments.fonts)
    texts = {k: torch.from_numpy(v).to(device) for k, v in maker.text("train", range(arguments.texts)).items()}
    model = new_model()
    if arguments.resume:
        merged = load_file(arguments.resume[0])
        remainders = load_file(arguments.resume[1]) if len(arguments.resume) > 1 else {}
        state = {k: v.float() + remainders[k].float() if k in remainders else v.float() for k, v in merged.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        note(resumed=str(arguments.resume[0]), missing=list(missing), unexpected=list(unexpected))
    use_fast_parts()
    static = Static(model).to(device)
    for module in model.modules():
        if hasattr(module, "use_clipped_linears"):
            module.use_clipped_linears = False
    note(parameters=parameters(model), device=str(device))
    engine = Engine(static, device)
    rings = {kind: Ring(capacity if device.type == "cuda" else 400, device) for kind, capacity in CAPACITY.items()}
    lock = threading.Lock()
    names = ("audio", "image", "film", "text")
    batcher = Batcher(rings, texts, dict(zip(names, arguments.batch, strict=True)), device)
    feeders = [Feeder(arguments.spool, rings, lock, device, part, 2) for part in range(2)]
    # One sample of each kind, many times over, is enough for the captures.
    for kind, ring in rings.items():
        one = getattr(maker, kind)("train", [0])
        ring.put({key: torch.from_numpy(value).to(device) for key, value in one.items()})
    for kind in KINDS:
        batch = batcher.batch(kind)
        if device.type == "cuda":
            for variant in (FLOAT_CTC, FLOAT, 64, 128, 0):
                if variant == FLOAT_CTC and kind != "audio":
                    continue
                engine.capture(kind, batch, variant)
            note(captured=kind, memory=round(torch.cuda.max_memory_allocated() / 2**30, 1))
    for ring in rings.values():
        ring.filled = ring.total = 0
    for feeder in feeders:
        feeder.start()
    while any(rings[k].filled < n for k, n in zip(("audio", "image", "film"), arguments.fill, strict=True)):
        time.sleep(0.1)
    matrices, tables, vectors = split(engine.parameters)
    muon = Muon(matrices)
    optimizer = torch.optim.AdamW(
        [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=arguments.rate, betas=(0.9, 0.98), eps=1e-8, fused=device.type == "cuda",
    )  # fmt: skip
    all_parameters = [*matrices, *tables, *vectors]
    grads = [p.grad for p in all_parameters]
    choices = np.random.default_rng(0)
    start, reserve = time.time(), 12.0
    last_save = time.time()
    if device.type == "cuda":
        note(step_ms={kind: replay_ms(engine, batcher, kind) for kind in KINDS})
    note(training=True, samples={k: r.total for k, r in rings.items()})
    step, sums, seen = 0, {}, {}
    while step < arguments.steps:
        if step % 50 == 0 and (arguments.out / "seconds").exists():
            arguments.seconds = float((arguments.out / "seconds").read_text())
        progress = (time.time() - start) / max(1.0, arguments.seconds - reserve - (start - begin))
        if arguments.steps < 10**9:
            progress = max(progress, step / arguments.steps)
        if progress >= 1:
            break
        variant = variant_at(progress, choices.random())
        rate = learning_rate(progress, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * arguments.rate
        batcher.strength = min(1.0, progress / 0.12)
        torch._foreach_zero_(grads)
        for kind, share in zip(KINDS, arguments.shares, strict=True):
            if choices.random() >= share:
                continue
            with lock:
                batch = batcher.batch(kind)
            for key, value in engine.step(kind, batch, variant).items():
                sums[key] = sums.get(key, 0) + value
                seen[key] = seen.get(key, 0) + 1
        torch.nn.utils.clip_grad_norm_(all_parameters, 1.0)
        optimizer.step()
        muon.step(rate * arguments.muon)
        step += 1
        if step % 100 == 0 or step == 1:
            shown = {k: round(float(v) / seen[k], 4) for k, v in sums.items()}
            sums, seen = {}, {}
            if not math.isfinite(sum(shown.values())):
                raise ArithmeticError(f"loss is not finite: {shown}")
            if step % 300 == 0 or step in (1, 100):
                note(step=step, progress=round(progress, 3), rate=round(rate, 4), **shown,
                     samples={k: r.total for k, r in rings.items()})  # fmt: skip
        if time.time() - last_save > 100:
            save(static, arguments.out, calibrated(engine, batcher, KINDS))
            last_save = time.time()
    for feeder in feeders:
        feeder.stopped = True
    (arguments.spool / "stop").touch()
    save(static, arguments.out, calibrated(engine, batcher, KINDS))
    note(done=True, samples={k: r.total for k, r in rings.items()})
    for worker in workers:
        worker.terminate()


if __name__ == "__main__":
    main()
