"""Trains the demo model on one GPU, in two stages (see `stages.py`).

    python train.py --stage 1 --checkpoint CHECKPOINT --stamps STAMPS --fonts FONTS --out FIRST
    python train.py --stage 2 --resume FIRST/model.safetensors FIRST/remainder.safetensors ... --out SECOND

Worker processes draw and speak all the while (see `data.py`); the trainer keeps the latest of their work in GPU
memory and draws batches from it. Forward and backward of each kind of batch are captured once as CUDA graphs,
in several variants: float with the auxiliary CTC loss, float, and through INT4 weights with one scale for 64 columns,
128 columns or a row. All rates are functions of the step; only where `--limit` would come first do they fall to zero in
the half minute before it, and the log says so.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import Engine
from export import calibrated, save
from feed import Arrays, Batcher, Ring, Workers
from forward import Static, use_fast_parts
from model import new_model, parameters
from optimizer import Muon, split
from safetensors.torch import load_file
from stages import FLOAT, FLOAT_CTC, KINDS, STAGES, Stage

import data

ADAM_RATE, MUON_RATE = 2e-3, 0.015
LANDING, RESERVE = 30.0, 15.0
"""Seconds in which the rates fall to zero where time runs out, and that are left then for the last checkpoint."""


class Log:
    """Lines of JSON, on the screen and in a file."""

    def __init__(self, path: Path) -> None:
        self.begin = time.time()
        self._file = path.open("a")

    def __call__(self, **entry: Any) -> None:
        line = json.dumps({"t": round(time.time() - self.begin, 1), **entry})
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()


class Means:
    """Sums of what the steps report, on the GPU until somebody asks."""

    def __init__(self) -> None:
        self._sums: Arrays = {}
        self._seen: dict[str, int] = {}

    def add(self, values: Arrays) -> None:
        for key, value in values.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()
            self._seen[key] = self._seen.get(key, 0) + 1

    def take(self) -> dict[str, float]:
        """The means since the last time; raises where one is not finite."""
        means = {k: round(float(v) / self._seen[k], 4) for k, v in self._sums.items()}
        self._sums, self._seen = {}, {}
        if not math.isfinite(sum(means.values())):
            raise ArithmeticError(f"a loss is not finite: {means}")
        return means


def resume(static: Static, files: Sequence[Path], log: Log) -> None:
    """Weights in bfloat16 and what bfloat16 cut off; the heads, which are not kept, begin at zero."""
    merged = load_file(files[0])
    remainders = load_file(files[1]) if len(files) > 1 else {}
    state = {k: v.float() + remainders[k].float() if k in remainders else v.float() for k, v in merged.items()}
    missing, unexpected = static.model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for weight in static.heads.parameters():
            weight.zero_()
    log(resumed=str(files[0]), missing=list(missing), unexpected=list(unexpected))


def capture(engine: Engine, batcher: Batcher, maker: data.Maker, stage: Stage, log: Log) -> None:
    """All graphs, on one sample of each kind, many times over."""
    for kind, ring in batcher.rings.items():
        one = getattr(maker, kind)("train", [0])
        ring.put({key: torch.from_numpy(value).to(ring.device) for key, value in one.items()})
    for kind in KINDS:
        batch = batcher.batch(kind)
        if engine.device.type == "cuda":
            first = (FLOAT_CTC,) if stage.ctc_until and kind == "audio" else ()
            for variant in (*first, FLOAT, 64, 128, 0):
                engine.capture(kind, batch, variant)
            log(captured=kind, memory=round(torch.cuda.max_memory_allocated() / 2**30, 1))
    for ring in batcher.rings.values():
        ring.filled = ring.total = 0


def train(
    stage: Stage, engine: Engine, batcher: Batcher, lock: threading.Lock, out: Path, limit: float, log: Log
) -> None:
    """The stage's steps, or as many as fit into `limit` seconds from the log's beginning."""
    matrices, tables, vectors = split(engine.parameters)
    muon = Muon(matrices)
    optimizer = torch.optim.AdamW(
        [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=ADAM_RATE, betas=(0.9, 0.98), eps=1e-8, fused=engine.device.type == "cuda",
    )  # fmt: skip
    everything = [*matrices, *tables, *vectors]
    grads = [p.grad for p in everything]
    choices = np.random.default_rng(stage.first_shard)
    means, hurried = Means(), False
    start = last_save = time.time()
    for step in range(stage.steps):
        now = time.time()
        left = limit - RESERVE - (now - log.begin)
        if not hurried and left < min(LANDING, (now - start) * (stage.steps - step) / max(1, step)):
            hurried = True
            log(step=step, hurried=f"the limit of {limit:.0f} s comes before step {stage.steps}")
        if left <= 0:
            break
        variant = stage.variant(step, choices.random())
        rate = stage.rate(step) * (left / LANDING if hurried else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * ADAM_RATE
        batcher.strength = stage.strength(step)
        torch._foreach_zero_(grads)
        for kind in KINDS:
            if choices.random() < stage.shares[kind]:
                with lock:
                    batch = batcher.batch(kind)
                means.add(engine.step(kind, batch, variant))
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        muon.step(rate * MUON_RATE)
        if (step + 1) % 300 == 0 or step + 1 in (1, 100, stage.steps):
            log(
                step=step + 1,
                rate=round(rate, 4),
                **means.take(),
                samples={k: r.total for k, r in batcher.rings.items()},
            )
        if time.time() - last_save > 100:
            save(engine.routed.static, out, calibrated(engine, batcher, KINDS))
            last_save = time.time()
    save(engine.routed.static, out, calibrated(engine, batcher, KINDS))
    log(done=True, samples={k: r.total for k, r in batcher.rings.items()})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=tuple(STAGES), required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with the tokenizer's files")
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, nargs="*", default=[], metavar="FILE",
                        help="weights to go on from, and their remainders")  # fmt: skip
    parser.add_argument("--limit", type=float, default=math.inf, metavar="SECONDS", help="stop by then, come what may")
    parser.add_argument("--steps", type=int, help="instead of the stage's own, for a trial")
    parser.add_argument("--batch", type=int, nargs=4, metavar=("AUDIO", "IMAGE", "FILM", "TEXT"), help="for a trial")
    parser.add_argument("--workers", type=int, nargs=3, metavar=("AUDIO", "IMAGE", "FILM"))
    parser.add_argument("--fill", type=int, nargs=3, default=(1500, 1000, 400), metavar=("AUDIO", "IMAGE", "FILM"),
                        help="samples to wait for at first")  # fmt: skip
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--spool", type=Path, default=Path("/dev/shm/cellmd-demo"))
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    stage = STAGES[arguments.stage]
    changed: dict[str, Any] = {"steps": arguments.steps} if arguments.steps else {}
    if arguments.batch:
        changed["batch"] = dict(zip(("audio", "image", "film", "text"), arguments.batch, strict=True))
    stage = replace(stage, **changed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = Log(arguments.out / "log.jsonl")
    places = (arguments.checkpoint, arguments.stamps, arguments.fonts)
    workers = Workers(stage, arguments.workers or tuple(stage.workers.values()), arguments.spool, places)
    maker = data.Maker(*places)
    texts = {k: torch.from_numpy(v).to(device) for k, v in maker.text("train", range(arguments.texts)).items()}
    use_fast_parts()
    static = Static(new_model())
    if arguments.resume:
        resume(static, arguments.resume, log)
    static.to(device).window = stage.window
    for module in static.modules():
        if hasattr(module, "use_clipped_linears"):
            module.use_clipped_linears = False
    log(stage=arguments.stage, parameters=parameters(static.model), device=str(device))
    engine = Engine(static, stage.weights, device)
    rings = {kind: Ring(n if device.type == "cuda" else 400, device) for kind, n in stage.capacity.items()}
    batcher = Batcher(rings, texts, stage.batch, device)
    capture(engine, batcher, maker, stage, log)
    lock = threading.Lock()
    workers.feed(rings, lock, device, arguments.fill)
    if device.type == "cuda":
        log(step_ms={kind: engine.replay_ms(batcher, kind) for kind in KINDS})
    log(training=True, samples={k: r.total for k, r in rings.items()})
    train(stage, engine, batcher, lock, arguments.out, arguments.limit, log)
    workers.stop()


if __name__ == "__main__":
    main()
