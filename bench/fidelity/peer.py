"""What llama.cpp's Q4_0 keeps of the same float weights on the same pieces of text, measured with its own kernels.

    pip install llama-cpp-python
    python bench/fidelity/peer.py /tmp/fidelity/model/g270.gguf /tmp/fidelity/novel.txt /tmp/fidelity/manual.txt

The file is dequantised by llama.cpp itself (F32, the yardstick here), then quantised to Q4_0 throughout, and to its
usual mixture with the embedding at 8 bits. One JSON line each, in the form of `cellmd eval --json`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp
import numpy as np

from cellmd.calibration.divergence import log_softmax_
from cellmd.evaluation.samples import text_pieces
from cellmd.evaluation.scores import PieceScores, Summary, compare_logits
from cellmd.processors.tokenizer import open_tokenizer

F32, Q4_0 = 0, 2
PIECE, MOST_TOKENS, BOS = 512, 8192, 2


def quantise(source: Path, target: Path, kind: int, pure: bool) -> Path:
    if not target.exists():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.pure, options.allow_requantize = kind, pure, True
        arguments = str(source).encode(), str(target).encode(), ctypes.byref(options)
        if llama_cpp.llama_model_quantize(*arguments) != 0:
            raise SystemExit(f"llama.cpp could not make {target}")
    return target


def logits(model: llama_cpp.Llama, piece: list[int]) -> np.ndarray:
    model.reset()
    model.eval(piece)
    return np.array(model.scores[: len(piece)], dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the GGUF file, tokenizer.json beside it")
    parser.add_argument("texts", type=Path, nargs="+")
    args = parser.parse_args()
    folder = args.model.parent
    yardstick = quantise(args.model, folder / "peer-f32.gguf", F32, False)
    paths = {
        "Q4_0 throughout": quantise(yardstick, folder / "peer-q4_0.gguf", Q4_0, True),
        "Q4_0, embedding Q8_0": quantise(yardstick, folder / "peer-q4_0-mix.gguf", Q4_0, False),
    }
    options = {"n_ctx": PIECE, "n_batch": PIECE, "logits_all": True, "verbose": False}
    against = llama_cpp.Llama(str(yardstick), **options)
    models = {name: llama_cpp.Llama(str(path), **options) for name, path in paths.items()}
    tokenizer = open_tokenizer({"tokenizer.json": (folder / "tokenizer.json").read_bytes()})
    scores: dict[str, dict[str, list[PieceScores]]] = {name: {} for name in models}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for text in args.texts:
            for piece in text_pieces(tokenizer, text, BOS, PIECE, MOST_TOKENS):
                log_p = log_softmax_(logits(against, piece), pool)
                for name, model in models.items():
                    compared = compare_logits(logits(model, piece), log_p, piece[1:], pool)
                    scores[name].setdefault(text.name, []).append(compared)
    for name, by_text in scores.items():
        together = Summary.of([piece for pieces in by_text.values() for piece in pieces])
        facts = {"file": name, "file_bytes": paths[name].stat().st_size, "modalities": {"text": together.as_dict()}}
        facts["samples"] = {text: Summary.of(pieces).as_dict() for text, pieces in by_text.items()}
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
