"""The yardstick: a checkpoint run by transformers, greedily, with weights as they are or rounded to INT4."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from films import sampled
from media import film_frames
from prompts import Media, Prompter, film_media, image_media
from quantize import quantizable, rounded
from sound import soft_tokens
from transformers import Gemma4AudioFeatureExtractor, Gemma4ForConditionalGeneration
from world import Question

from data import FRAMES, PATCHES, POOL, patches_of
from tokenizer import ID

if TYPE_CHECKING:
    from evaluate import Case


class _Before(random.Random):
    """Always puts the media before the text, and no system turn."""

    def random(self) -> float:
        return 0.99


class ReferenceModel:
    def __init__(self, folder: Path, group: int | None = None) -> None:
        self._prompter = Prompter(folder)
        self._extractor = Gemma4AudioFeatureExtractor()
        self._model = Gemma4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        if group is not None:
            with torch.no_grad():
                for name, weight in self._model.named_parameters():
                    if quantizable(name, weight):
                        weight.copy_(rounded(weight, group))

    @torch.no_grad()
    def answer(self, case: Case) -> str:
        inputs: dict[str, torch.Tensor] = {}
        media: Media | None = None
        if case.sound is not None:
            found = self._extractor([case.sound], return_tensors="pt")
            inputs = {"input_features": found["input_features"], "input_features_mask": found["input_features_mask"]}
            media = Media("<|audio|>", int(soft_tokens(torch.tensor(len(case.sound)))))
        elif case.image is not None:
            pixels, places, tokens = _pixels([case.image])
            inputs = {"pixel_values": pixels, "image_position_ids": places}
            media = image_media(tokens)
        elif case.film is not None:
            frames, rate = film_frames(case.film)
            taken = sampled(len(frames))
            pixels, places, tokens = _pixels([frames[n] for n in taken])
            inputs = {
                "pixel_values_videos": pixels,
                "video_position_ids": places,
                "num_frames_per_video": torch.tensor([FRAMES]),
            }
            media = film_media(tokens, [n / rate for n in taken])
        ids, mask = self._prompter.turns([Question(case.question.text, "", ())], media, _Before())
        prompt = ids[: mask.index(1)]
        out = self._model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=48, do_sample=False, pad_token_id=ID["<pad>"],
            eos_token_id=[ID["<eos>"], ID["<turn|>"]], **inputs,
        )  # fmt: skip
        reply = [i for i in out[0, len(prompt) :].tolist() if i not in (ID["<turn|>"], ID["<eos>"], ID["<pad>"])]
        return self._prompter.decode(reply)


def _pixels(pictures: list) -> tuple[torch.Tensor, torch.Tensor, int]:  # type: ignore[type-arg]
    """Patches in 0..1, their places, and the number of soft tokens of each picture."""
    all_patches, all_places, tokens = [], [], 0
    index = torch.arange(PATCHES)
    for picture in pictures:
        patches, (columns, rows) = patches_of(picture)
        places = torch.stack((index % columns, index // columns), -1)
        places[columns * rows :] = -1
        all_patches.append(torch.from_numpy(patches).float() / 255)
        all_places.append(places)
        tokens = columns * rows // POOL**2
    return torch.stack(all_patches), torch.stack(all_places), tokens
