"""Builds the tokenizer: Gemma 4's pipeline and special tokens, with a small vocabulary of our own world.

python tokenizer.py --template chat_template.jinja --out CHECKPOINT
"""

# ruff: noqa: E501, SIM905 - long lists of words are easier to read and to change as text
from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from chat import talk
from films import make_film
from sentences import sentence
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from world import make_scene

VOCABULARY = 1536
SPECIALS = (
    "<pad> <eos> <bos> <unk> <mask> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> <tool_response|> "
    '<|"|> <|think|> <|channel> <channel|> <|turn> <turn|> <|image> <|audio> <|image|> <|audio|> <image|> <audio|> '
    "<|video|>"
).split()
ID = {name: n for n, name in enumerate(SPECIALS)}
SPACE = "\u2581"
# A word with the space before it, a digit, or any one other character; a merge never crosses these borders.
_PIECE = Regex(rf"{SPACE}?[A-Za-z][A-Za-z']*|[0-9]|[^A-Za-z0-9]")


def corpus(count: int = 60_000) -> Iterator[str]:
    """What the model reads and writes, in about the proportions of training."""
    rng = random.Random("tokenizer")
    for n in range(count):
        kind = n % 6
        if kind < 2:
            yield "\n".join(sentence(rng) for _ in range(5))
        elif kind == 2:
            question = talk(rng)
            yield question.text + "\n" + question.answer
        elif kind < 5:
            asked = make_scene(rng).questions
            yield "\n".join(f"{q.text}\n{q.answer}" for q in asked)
        else:
            yield "\n".join(f"{q.text}\n{q.answer}" for q in make_film(rng).questions)
        if n % 50 == 0:
            yield "user\nmodel\nsystem\nthought\nTranscribe this audio: Transcribe the audio. What is said?"


def train(lines: Iterator[str]) -> Tokenizer:
    """Byte-pair merges inside words, then Gemma's own pipeline around them."""
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(_PIECE, "isolated")
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=tokens,
        initial_alphabet=[chr(c) for c in range(33, 127)] + ["\n", SPACE],
        limit_alphabet=120,
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    state = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    model = models.BPE(state["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", ID["<bos>"])]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def write(out: Path, template: Path) -> Tokenizer:
    """The tokenizer's files, and those of the processor and of generation, which speak of its ids."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(corpus())
    if tokenizer.get_vocab_size() > VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens, {VOCABULARY} wanted")
    tokenizer.save(str(out / "tokenizer.json"))
    _dump(out / "tokenizer_config.json", _tokenizer_config())
    _dump(out / "generation_config.json", {
        "bos_token_id": ID["<bos>"], "do_sample": False, "max_new_tokens": 64, "pad_token_id": ID["<pad>"],
        "eos_token_id": [ID["<eos>"], ID["<turn|>"], ID["<|tool_response>"]],
    })  # fmt: skip
    _dump(out / "processor_config.json", _processor_config())
    if template.resolve() != (out / "chat_template.jinja").resolve():
        shutil.copyfile(template, out / "chat_template.jinja")
    return tokenizer


def _dump(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _tokenizer_config() -> dict[str, object]:
    named = {"boi": "<|image>", "eoi": "<image|>", "image": "<|image|>", "boa": "<|audio>", "eoa": "<audio|>",
             "audio": "<|audio|>"}  # fmt: skip
    return {
        "tokenizer_class": "GemmaTokenizer",
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")},
        "padding_side": "left",
        "model_max_length": 8192,
        **{f"{name}_token": token for name, token in named.items()},
    }


def _processor_config() -> dict[str, object]:
    picture = {
        "do_convert_rgb": True, "do_rescale": True, "do_resize": True, "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0], "max_soft_tokens": 70, "patch_size": 16, "pooling_kernel_size": 3, "resample": 3,
        "rescale_factor": 1 / 255,
    }  # fmt: skip
    return {
        "processor_class": "Gemma4Processor",
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "image_seq_length": 70,
        "feature_extractor": {
            "feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": 128, "sampling_rate": 16_000,
            "padding_value": 0.0, "padding_side": "right", "return_attention_mask": True, "frame_length": 320,
            "hop_length": 160, "fft_length": 512, "min_frequency": 0.0, "max_frequency": 8000.0, "preemphasis": 0.0,
            "preemphasis_htk_flavor": True, "fft_overdrive": False, "dither": 0.0, "input_scale_factor": 1.0,
            "mel_floor": 0.001, "per_bin_mean": None, "per_bin_stddev": None,
        },
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", "do_normalize": False, "image_seq_length": 70,
                            **picture},
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor", "do_normalize": True, "num_frames": 4,
                            "do_sample_frames": True, "return_metadata": False, **picture},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--template", type=Path, required=True, help="Gemma 4's chat_template.jinja")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(write(arguments.out, arguments.template).get_vocab_size(), "tokens")


if __name__ == "__main__":
    main()
