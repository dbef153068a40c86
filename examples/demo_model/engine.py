"""The losses of a step, and forward and backward of each kind of batch captured as CUDA graphs."""

from __future__ import annotations

import time

import torch
from feed import Arrays, Batcher
from forward import Static, ctc_loss
from quantize import quantizable, straight_through
from stages import FLOAT, FLOAT_CTC
from torch.func import functional_call

import data


def step_losses(static: Static, kind: str, batch: Arrays, with_ctc: bool) -> Arrays:
    """The losses of one kind of batch, and the share of answers that are right."""
    if kind == "audio":
        soft = static.audio(batch["mel"].to(soft_dtype(static)), batch["mel_mask"])
        out = static.answers(static.hidden(batch["ids"], soft, None), batch["ids"], batch["mask"])
        losses = {"audio": out["loss"], "audio_right": out["right"]}
        if with_ctc:
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
        if k == "film":
            seen = batch["film_cells"][:, None, :, 2].expand(-1, talks, -1, -1).flatten(0, 1)
            losses |= static.motions(ids, tokens, seen)
    losses["cells"] = static.cells(soft, torch.cat([batch[f"{k}_cells"].flatten(0, 1) for k in parts]))
    return losses


def soft_dtype(static: Static) -> torch.dtype:
    return static.model.model.audio_tower.output_proj.weight.dtype


class Routed(torch.nn.Module):
    """`step_losses` as a module, so that `functional_call` can lend it other weights."""

    def __init__(self, static: Static) -> None:
        super().__init__()
        self.static = static

    def forward(self, kind: str, batch: Arrays, with_ctc: bool) -> Arrays:
        return step_losses(self.static, kind, batch, with_ctc)


class Engine:
    """Weights, gradients, and the captured steps."""

    def __init__(self, static: Static, weights: dict[str, float], device: torch.device) -> None:
        self.routed = Routed(static)
        self.weights = weights
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
        return functional_call(self.routed, self.lent(variant), (kind, batch, variant == FLOAT_CTC))

    def run(self, kind: str, batch: Arrays, variant: int) -> Arrays:
        losses = self.forward(kind, batch, variant)
        total = sum(self.weights[k] * v for k, v in losses.items() if k in self.weights)
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

    def replay_ms(self, batcher: Batcher, kind: str, times: int = 10) -> tuple[float, float]:
        """Milliseconds to fill a batch, and to run forward and backward on it."""
        took = []
        for act in (lambda: batcher.batch(kind), lambda: self.step(kind, batcher.static[kind], FLOAT)):
            torch.cuda.synchronize()
            start = time.time()
            for _ in range(times):
                act()
            torch.cuda.synchronize()
            took.append(round((time.time() - start) / times * 1000, 1))
        return took[0], took[1]
