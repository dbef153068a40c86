"""Prompts, a picture and a sound on a GPU: the first of a size, the second, which is recorded, and later ones.

    python bench/cuda/prompts.py model.cellmd [--prompts 512 4096 65] [--profile]

Milliseconds; the most memory that torch has taken until then, and what lies beside it on the device (CUDA itself, code,
recordings). Before the first token there are imports, binding and the first prompt, which are timed too. The last line
is JSON.
`--profile` adds what the GPU does on the way, launch by launch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
LATER = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 4096, 65])
    parser.add_argument("--context", type=int, default=4352)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    clock = Clock()
    import torch

    clock.lap("import torch")
    torch.zeros(1, device="cuda")
    clock.lap("start CUDA")
    import numpy as np

    from cellmd.backends import create
    from cellmd.config import ModelConfig
    from cellmd.container import Container
    from cellmd.models.gemma4 import Gemma4
    from cellmd.processors.features import AudioFeatures, ImageFeatures
    from cellmd.runtime.batch import Sequence
    from cellmd.runtime.generate import Runner
    from cellmd.runtime.kv_cache import KvCache

    ops = create("cuda")
    clock.lap("import and create")
    container = Container.open(arguments.file)
    config = ModelConfig.from_dict(container.config)
    model = Gemma4(ops, config, container.tensors)
    torch.cuda.synchronize()
    clock.lap("bind")
    cache = KvCache(ops, config.text, n_slots=1, context=arguments.context, chunk=ops.prompt_rows)
    runner, rng = Runner(model, cache), np.random.default_rng(0)

    def prompt(n: int) -> Callable[[], object]:
        ids = rng.integers(0, config.text.vocab_size, n).tolist()
        return lambda: runner.prefill(Sequence(0, list(ids))).best(1)

    work = {f"prompt of {n}": prompt(n) for n in arguments.prompts}
    if config.vision is not None:
        patches = rng.random((48 * 48, 3 * config.vision.patch_size**2), dtype=np.float32)
        image = ImageFeatures(patches, 48, 48, 48 * 48 // config.vision.pooling**2)
        work["picture of 768 x 768"] = lambda: ops.to_numpy(model.encode_image(image))
    if config.audio is not None:
        sound = AudioFeatures(rng.standard_normal((3000, 128)).astype(np.float32), 750, 30.0)
        work["30 s of sound"] = lambda: ops.to_numpy(model.encode_audio(sound))
    figures: dict[str, Any] = {}
    for what, run in work.items():
        first = milliseconds(run)
        if not figures:
            clock.lap("first prompt")
        second, *later = (milliseconds(run) for _ in range(1 + LATER))
        figures[what] = {"first": first, "second": second, "later": statistics.median(later), "worst": max(later)}
        free, total = torch.cuda.mem_get_info()
        figures[what]["torch_mb"] = torch.cuda.max_memory_reserved() / 1e6
        figures[what]["beside_mb"] = (total - free - torch.cuda.memory_reserved()) / 1e6
        print(what, {name: round(value, 2) for name, value in figures[what].items()}, flush=True)
    if arguments.profile:
        for what, run in work.items():
            print_kernels(what, run)
    print(json.dumps({"seconds": clock.laps, "ms": figures}))


class Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = BEGAN

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


def print_kernels(what: str, run: Callable[[], object]) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    totals: dict[str, tuple[int, float]] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            n, us = totals.get(event.name, (0, 0.0))
            totals[event.name] = n + 1, us + event.device_time
    n_all, us_all = (sum(total[i] for total in totals.values()) for i in range(2))
    print(f"{what}: {n_all} on the GPU, busy for {us_all / 1e3:.2f} ms")
    for name, (n, us) in sorted(totals.items(), key=lambda item: -item[1][1])[:16]:
        print(f"  {us:8.0f} us {n:5} x  {name[:100]}")


if __name__ == "__main__":
    main()
