"""What the reference gives for fixed inputs, recorded for the tests that run without it.

    PYTHONPATH=src:tests python -m processors.goldens      # writes tests/data/processors; needs the extra `reference`

Token ids of the ten conversations for every tokenizer at hand (runs of one id as [id, count]); log-mel frames of a few
sounds; some patches of a few pictures, as the whole numbers 0..255 that they are multiples of.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from processors import reference
from processors.conversations import conversations, sound
from processors.folders import DATA, TEMPLATE, TOKENIZERS, folder_of

FOLDER = DATA / "processors"
SOUND_LENGTHS = (161, 400, 2_000, 4_001, 16_000)
EVERY = 11  # of the patches, the first and every so many after it
PICTURES = {  # name: height, width, soft tokens
    "wide": (90, 300, 70),
    "upright": (640, 480, 70),
    "strip": (2, 700, 140),
}


def smooth_picture(height: int, width: int) -> np.ndarray:
    """Waves of several lengths: compresses well, yet tells resampling filters apart. uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / 7 + channel) + np.cos(y / (5 + channel)) for channel in range(3)]
    return np.rint(127.5 + 60 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8)


def packed(ids: list[int]) -> list[int | list[int]]:
    """Runs of one id as [id, count]."""
    runs = ((token_id, len(list(run))) for token_id, run in groupby(ids))
    return [token_id if count == 1 else [token_id, count] for token_id, count in runs]


def unpacked(runs: list[Any]) -> list[int]:
    return [token_id for run in runs for token_id in ([run[0]] * run[1] if isinstance(run, list) else [run])]


def record() -> None:
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    FOLDER.mkdir(exist_ok=True)
    prompts = {}
    for name in TOKENIZERS:
        processor = reference.load_processor(folder_of(name), TEMPLATE)
        prompts[name] = {case.name: packed(reference.token_ids(processor, case)) for case in conversations()}
    lines = [
        f'"{name}": {{\n' + ",\n".join(f"{json.dumps(case)}: {json.dumps(ids)}" for case, ids in cases.items()) + "\n}"
        for name, cases in prompts.items()
    ]
    (FOLDER / "prompts.json").write_text("{" + ",\n".join(lines) + "}\n")

    extractor, mel = Gemma4AudioFeatureExtractor(), {}
    for n in SOUND_LENGTHS:
        output = extractor([sound(n, n / 16_000)])
        mel[str(n)] = output["input_features"][0][output["input_features_mask"][0]]
    np.savez_compressed(FOLDER / "log_mel.npz", **mel)

    patches = {}
    for name, (height, width, budget) in PICTURES.items():
        output = Gemma4ImageProcessorPil()(Image.fromarray(smooth_picture(height, width)), max_soft_tokens=budget)
        n_patches = int(output["num_soft_tokens_per_image"][0]) * 9
        kept = np.asarray(output["pixel_values"][0])[:n_patches:EVERY]
        patches[name] = np.rint(kept * 255).astype(np.uint8)
    np.savez_compressed(FOLDER / "patches.npz", **patches)


if __name__ == "__main__":
    record()
