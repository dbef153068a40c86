"""From trained weights to a checkpoint as transformers writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from forward import Static
from safetensors.torch import save_file
from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

if TYPE_CHECKING:
    from engine import Engine
    from feed import Batcher

MARGIN = 1.5


@torch.no_grad()
def calibrated(
    engine: Engine, batcher: Batcher, kinds: Sequence[str], batches: int = 4
) -> dict[str, tuple[float, ...]]:
    """For each clipped linear the range of its inputs and outputs over some training batches, with a margin."""
    seen: dict[str, torch.Tensor] = {}
    handles = []

    def watcher(name: str) -> Callable[..., None]:
        def watch(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x, y = inputs[0].float(), output.float()
            found = torch.stack((-x.min(), x.max(), -y.min(), y.max()))
            seen[name] = torch.maximum(seen[name], found) if name in seen else found

        return watch

    for name, module in engine.routed.static.model.named_modules():
        if isinstance(module, Gemma4ClippableLinear):
            handles.append(module.register_forward_hook(watcher(name)))
    for _ in range(batches):
        for kind in kinds:
            if kind != "text":
                engine.forward(kind, batcher.batch(kind), -1)
    for handle in handles:
        handle.remove()
    return {name: tuple((found.clamp(min=0.1) * MARGIN).tolist()) for name, found in seen.items()}


def save(static: Static, out: Path, ranges: dict[str, tuple[float, ...]]) -> None:
    """`model.safetensors` in bfloat16, and `remainder.safetensors` (what bfloat16 cut off) to go on training from."""
    state: dict[str, torch.Tensor] = {}
    remainder: dict[str, torch.Tensor] = {}
    for name, value in static.model.state_dict().items():
        if name == "lm_head.weight":
            continue
        where, _, leaf = name.rpartition(".")
        if leaf in ("input_min", "input_max", "output_min", "output_max"):
            low_x, high_x, low_y, high_y = ranges[where]
            number = {"input_min": -low_x, "input_max": high_x, "output_min": -low_y, "output_max": high_y}[leaf]
            value = torch.tensor(number)
        state[name] = value.detach().to("cpu", torch.bfloat16).contiguous()
        if value.ndim and value.is_floating_point():
            remainder[name] = (value.detach().cpu().float() - state[name].float()).to(torch.bfloat16).contiguous()
    for name, tensors in (("model", state), ("remainder", remainder)):
        save_file(tensors, out / f"{name}.partial", metadata={"format": "pt"})
        (out / f"{name}.partial").rename(out / f"{name}.safetensors")


def write_config(config: Any, out: Path) -> None:
    """config.json beside the weights."""
    config.architectures = ["Gemma4ForConditionalGeneration"]
    config.save_pretrained(out)
