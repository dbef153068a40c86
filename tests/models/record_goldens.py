"""What transformers gives on small random models, recorded for the tests that run without it.

    PYTHONPATH=src:tests python tests/models/record_goldens.py      # writes tests/data/models

For a few shapes of checkpoint, float weights: every border of the decoder, the soft tokens of each medium, the logits
of each step of a greedy answer. Recorded is the reference's float64 answer, rounded to float32, under the border's
name; and under NAME/error, the errors of its own float32 run, which the tests' tolerances are made of.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import cellmd
import model_cases
from checkpoints import DATA
from transformers_model import ReferencePair, decoder_borders, greedy, row_errors, soft_tokens

FOLDER = DATA / "models"
SHAPES = ("tiny", "deep_shared", "wide_heads", "text_only")
N_STEPS = 12


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            np.savez_compressed(FOLDER / f"{shape}.npz", **record(shape, Path(folder)))
        print(shape, (FOLDER / f"{shape}.npz").stat().st_size)


def record(shape: str, folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with cellmd.load(model_cases.build(folder, shape), backend="reference") as model:
        pair = ReferencePair(model._open(), folder / "decoded")
        prompt = model_cases.media_prompt(model)

        def everything(reference: Any) -> dict[str, Any]:
            answer = greedy(reference, prompt, N_STEPS, model.defaults.end_ids)
            soft = {f"soft.{i}": values for i, values in enumerate(soft_tokens(reference, prompt))}
            borders = decoder_borders(reference, prompt)
            borders["logits"] = borders["logits"][::5]
            return {**borders, **soft, "steps": answer["logits"], "answer": answer["ids"]}

        float32, float64 = pair(everything)
        arrays["answer"] = float64.pop("answer")
        for name, values in float64.items():
            arrays[name] = values.astype(np.float32)
            arrays[f"{name}/error"] = row_errors(float32[name], values).astype(np.float32)
    return arrays


if __name__ == "__main__":
    main()
