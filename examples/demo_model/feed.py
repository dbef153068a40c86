"""From workers' files to batches: rings of the latest samples in GPU memory, and fixed input buffers."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sound import LogMel, augment, soft_tokens, spec_mask
from stages import Stage

import data
from tokenizer import ID

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


class Workers:
    """The processes that draw and speak (see `data.work`), and the threads that fetch what they made."""

    def __init__(self, stage: Stage, counts: Sequence[int], spool: Path, places: Sequence[Path]) -> None:
        context = multiprocessing.get_context("spawn")
        self.spool = spool
        spool.mkdir(parents=True, exist_ok=True)
        self._processes = []
        for kind, count in zip(("audio", "image", "film"), counts, strict=True):
            split = "train" if kind == "audio" else stage.split
            for n in range(count):
                arguments = (kind, split, stage.first_shard + n, count, str(spool), *map(str, places))
                self._processes.append(context.Process(target=data.work, args=arguments, daemon=True))
                self._processes[-1].start()
        self._feeders: list[Feeder] = []

    def feed(self, rings: dict[str, Ring], lock: threading.Lock, device: torch.device, fill: Sequence[int]) -> None:
        """Starts to fill the rings; returns when each holds as many samples as `fill` says."""
        self._feeders = [Feeder(self.spool, rings, lock, device, part, 2) for part in range(2)]
        for feeder in self._feeders:
            feeder.start()
        while any(rings[k].filled < n for k, n in zip(("audio", "image", "film"), fill, strict=True)):
            if not all(p.is_alive() for p in self._processes):
                raise RuntimeError("a worker process has ended; what it says is above")
            time.sleep(0.1)

    def stop(self) -> None:
        for feeder in self._feeders:
            feeder.stopped = True
        (self.spool / "stop").touch()
        for process in self._processes:
            process.terminate()


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
        return self._pictures("image") | self._pictures("film")

    def _pictures(self, kind: str) -> Arrays:
        drawn = self.rings[kind].draw(self.sizes[kind], self.generator)
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
