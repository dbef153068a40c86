"""Memory and time that calibration takes for the largest matrices of Gemma 4 E2B, each in a process of its own.

    python bench/fidelity/memory.py

Weights and inputs are random: neither memory nor time depends on them. One JSON line for each matrix; `rounding_gib` is
what is added, at its peak, to the weights and the moments.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cellmd.convert.recipe import find_recipe
from cellmd.convert.tensor_map import TensorSpec
from cellmd.quant.feedback import Feedback, InputMoments, encode_with_feedback

PREFIX = "model.language_model."
MATRICES = {
    f"{PREFIX}embed_tokens.weight": (262_144, 1536, False),
    f"{PREFIX}per_layer_model_projection.weight": (8960, 1536, True),
    f"{PREFIX}layers.34.mlp.up_proj.weight": (12_288, 1536, True),
    f"{PREFIX}layers.34.mlp.down_proj.weight": (1536, 12_288, True),
    f"{PREFIX}layers.0.mlp.down_proj.weight": (1536, 6144, True),
    "model.audio_tower.layers.0.feed_forward1.ffw_layer_2.linear.weight": (1024, 4096, False),
}
"""Rows, columns, and whether the stored model's inputs are not the source's. The embedding's role is its own."""


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, n_rows: int, n_columns: int, drifted: bool) -> dict[str, object]:
    rng = np.random.default_rng(0)
    role = "embedding" if name.endswith("embed_tokens.weight") else "matrix"
    coding = find_recipe("aggressive").coding(TensorSpec(name, (n_rows, n_columns), role, "text"), "bf16")
    weights = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
    inputs = rng.standard_normal((512, n_columns), dtype=np.float32)
    width = min(n_rows, n_columns)
    with ThreadPoolExecutor(1) as pool:
        moments = InputMoments(n_columns, pool)
        moments.add(inputs, rng.standard_normal((512, width), dtype=np.float32) / 8 if drifted else None)
        moments_gib = (moments.gram().nbytes + (0 if moments.pull is None else moments.pull.nbytes)) / 2**30
        before, began = peak(), time.perf_counter()
        encode_with_feedback(name, weights, coding, Feedback.of(moments), pool)
    return {
        "matrix": name,
        "shape": [n_rows, n_columns],
        "weights_gib": round(weights.nbytes / 2**30, 2),
        "moments_gib": round(moments_gib, 2),
        "rounding_gib": round(peak() - before, 2),
        "peak_gib": round(peak(), 2),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time(), 1),
    }


def main() -> None:
    context = multiprocessing.get_context("spawn")
    for name, (n_rows, n_columns, drifted) in MATRICES.items():
        with context.Pool(1) as pool:
            print(json.dumps(pool.apply(measure, (name, n_rows, n_columns, drifted))), flush=True)


if __name__ == "__main__":
    main()
