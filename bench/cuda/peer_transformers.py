"""What transformers makes of the same model on the same GPU: random weights in bfloat16, text alone.

    python bench/cuda/peer_transformers.py CONFIG.json [--prompt 4096] [--context 512] [--tokens 24]

Medians: a prompt read anew, and one greedy step after another on its cache. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    published = json.loads(arguments.config.read_text())
    config = transformers.Gemma4TextConfig(**published["text_config"])
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.Gemma4ForCausalLM(config).eval()
    vocabulary = config.vocab_size

    def prompt(n: int) -> Any:
        ids = torch.randint(0, vocabulary, (1, n), device="cuda")
        return model(ids, use_cache=True, logits_to_keep=1)

    with torch.no_grad():
        prompt_s = [timed(lambda: prompt(arguments.prompt))[0] for _ in range(4)][1:]
        out = prompt(arguments.context)
        steps_s = []
        for _ in range(arguments.tokens):
            ids = out.logits[:, -1:].argmax(-1)
            seconds, out = timed(lambda ids=ids, cache=out.past_key_values: model(ids, past_key_values=cache))
            steps_s.append(seconds)
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "transformers": transformers.__version__,
                "prompt_tokens_per_s": round(arguments.prompt / statistics.median(prompt_s)),
                "decode_tokens_per_s": round(1 / statistics.median(steps_s), 1),
                "weights_mb": round(sum(p.nbytes for p in model.parameters()) / 1e6),
            }
        )
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
