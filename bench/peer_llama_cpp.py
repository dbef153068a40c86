"""cellmd and llama.cpp in the same run: the same shapes at 4 bits, the same threads, taking turns.

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B peer -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF
    cmake --build peer --target llama-bench -j
    python bench/peer_llama_cpp.py model.cellmd --llama-bench peer/bin/llama-bench --gguf peer.gguf

The peer's file is written where `--gguf` says, if it is not there: the text decoder of the .cellmd file's own
configuration, every matrix and both embedding tables in Q4_0, with random weights (llama.cpp reads Gemma 4 as
architecture `gemma4`). What its own tools would make keeps the projection of the per-layer inputs at 16 bits and the
embedding at 6: a decoding step of theirs reads more than here.

Each round runs the peer's own benchmark program, then `cellmd bench`, in fresh processes. A rate is the median over
the rounds, a ratio the median of the rounds' ratios. Of decoding steps the peer tells the mean and cellmd the median.

Only a quiet machine gives ratios of any worth: the peer's threads spin until the slowest of them is there, and where
other work takes one of their cores they stand still (the load average before the first round is printed along). Ends
in one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cellmd.config import ModelConfig, TextConfig
from cellmd.container import Container
from cellmd.convert.gguf import LAYER_NAMES
from cellmd.convert.tensor_map import TensorSpec, expected_tensors

WANTED = {"prefill": 7.0, "decode": 1.25}
"""How many times the peer's rate is aimed at."""

PREFIX = "model.language_model."
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "embed_tokens_per_layer": "per_layer_token_embd",
    **{published: name for name, published in LAYER_NAMES.items()},
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "layer_scalar": "layer_output_scale",
}
"""Published names of tensors, without prefix, layer and `.weight`, and llama.cpp's."""

Q4_0 = gguf.GGMLQuantizationType.Q4_0
BLOCK_WEIGHTS, BLOCK_BYTES = (int(size) for size in gguf.GGML_QUANT_SIZES[Q4_0])
POOL_BLOCKS = 1 << 20
STEP = 0.0043
"""Weights STEP * (-8 .. 7), evenly: a deviation of 0.02, as trained ones have."""
NOT_TURNED = 1e30
"""Divides the frequency of channels that rotary embedding leaves as they are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the .cellmd file")
    parser.add_argument("--llama-bench", type=Path, required=True, help="the peer's benchmark program")
    parser.add_argument("--gguf", type=Path, required=True, help="the peer's file; written if it is not there")
    parser.add_argument("--prompt", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--context", type=int, default=512, help="tokens before the decoding steps")
    parser.add_argument("--tokens", type=int, default=32, help="decoding steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not args.gguf.exists():
        with Container.open(args.file) as container:
            write_gguf(args.gguf, ModelConfig.from_dict(container.config))
    load = os.getloadavg()[0]
    figures = compare([measure(args) for _ in range(args.rounds)])
    print(table(figures))
    files = {"cellmd_bytes": args.file.stat().st_size, "gguf_bytes": args.gguf.stat().st_size}
    facts = {"threads": args.threads, "rounds": args.rounds, "load_average": round(load, 2)}
    print(json.dumps({**facts, **files, **figures}))


# ---- the peer's file ----------------------------------------------------------------------------------------


def write_gguf(path: Path, config: ModelConfig, seed: int = 0) -> None:
    """The text decoder of a configuration as llama.cpp reads it: random Q4_0 matrices, norms of one."""
    if not config.text.ple_dim:
        raise SystemExit("a .cellmd file of Gemma 4 is needed: the peer's file is of that architecture")
    temporary = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(temporary, "gemma4")
    add_facts(writer, config.text)
    tensors = [spec for spec in expected_tensors(config).values() if spec.name.startswith(PREFIX) and not spec.unused]
    for spec in tensors:
        if len(spec.shape) == 2:
            shape = spec.shape[0], spec.shape[1] // BLOCK_WEIGHTS * BLOCK_BYTES
            writer.add_tensor_info(peer_name(spec.name), shape, np.dtype("u1"), q4_0_bytes(spec), Q4_0)
        else:
            writer.add_tensor_info(peer_name(spec.name), spec.shape, np.dtype("f4"), 4 * spec.shape[0])
    factors = rope_factors(config.text)
    writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file, pool = writer.fout[0], q4_0_pool(np.random.default_rng(seed))
    writer.write_padding(file, file.tell())
    for spec in tensors:
        if len(spec.shape) == 2:
            for left in range(q4_0_bytes(spec), 0, -pool.nbytes):
                file.write(pool[:left].data)
            writer.write_padding(file, q4_0_bytes(spec))
        else:
            write_array(writer, np.ones(spec.shape, np.float32))
    write_array(writer, factors)
    writer.close()
    temporary.replace(path)


def write_array(writer: gguf.GGUFWriter, values: np.ndarray) -> None:
    assert writer.fout is not None
    writer.fout[0].write(values.data)
    writer.write_padding(writer.fout[0], values.nbytes)


def peer_name(name: str) -> str:
    """model.language_model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    name = name.removeprefix(PREFIX).removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[name]}.weight"


def q4_0_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) // BLOCK_WEIGHTS * BLOCK_BYTES


def q4_0_pool(rng: np.random.Generator) -> np.ndarray:
    """Bytes of blocks of Q4_0: a float16 scale, then 32 codes."""
    pool = rng.integers(0, 256, (POOL_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    pool[:, :2] = np.frombuffer(np.float16(STEP).tobytes(), np.uint8)
    return pool.reshape(-1)


def rope_factors(text: TextConfig) -> np.ndarray:
    """What full layers divide the frequencies of their channels by."""
    full = next(layer for layer in text.layers if not layer.window)
    channels = np.arange(full.head_dim // 2)
    return np.where(channels < full.rotary_dim // 2, 1, NOT_TURNED).astype(np.float32)


def add_facts(writer: gguf.GGUFWriter, text: TextConfig) -> None:
    full = next(layer for layer in text.layers if not layer.window)
    sliding = next(layer for layer in text.layers if layer.window)
    writer.add_block_count(text.n_layers)
    writer.add_context_length(text.context_length)
    writer.add_embedding_length(text.d_model)
    writer.add_feed_forward_length([layer.ffn_dim for layer in text.layers])
    writer.add_head_count(text.n_heads)
    writer.add_head_count_kv([layer.n_kv_heads for layer in text.layers])
    writer.add_layer_norm_rms_eps(text.norm_eps)
    writer.add_final_logit_softcapping(text.softcap)
    writer.add_embedding_length_per_layer_input(text.ple_dim)
    writer.add_shared_kv_layers(text.n_layers - text.first_shared_layer)
    writer.add_sliding_window(sliding.window)
    writer.add_sliding_window_pattern([bool(layer.window) for layer in text.layers])
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_key_length_swa(sliding.head_dim)
    writer.add_value_length_swa(sliding.head_dim)
    writer.add_rope_freq_base(full.rope_base)
    writer.add_rope_freq_base_swa(sliding.rope_base)
    writer.add_rope_dimension_count(full.head_dim)  # some of them by a frequency of 0: `rope_factors`
    writer.add_rope_dimension_count_swa(sliding.rotary_dim)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(text.vocab_size)


# ---- measuring ----------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One round: what -> tokens a second of the peer and of cellmd."""
    threads = str(args.threads)
    peer = [str(args.llama_bench), "-m", str(args.gguf), "-t", threads, "-r", "1", "-o", "json"]
    prompts = run_json([*peer, "-n", "0", "-p", ",".join(map(str, args.prompt))])
    steps = run_json([*peer, "-p", "0", "-n", str(args.tokens), "-d", str(args.context)])
    rates = {f"prefill {each['n_prompt']}": {"peer": each["avg_ts"]} for each in prompts}
    rates[f"decode at {args.context}"] = {"peer": steps[0]["avg_ts"]}
    lengths = sorted({*args.prompt, args.context})
    options = ["--json", "--repeat", "1", "--threads", threads, "--tokens", str(args.tokens)]
    bench = [sys.executable, "-m", "cellmd.cli.main", "bench", str(args.file)]
    own = run_json([*bench, *options, "--prompt", *map(str, lengths)])
    for prefill in own["prefill"]:
        rates.get(f"prefill {prefill['tokens']}", {})["cellmd"] = prefill["tokens_per_s"]
    for decode in own["decode"]:
        rates.get(f"decode at {decode['context']}", {})["cellmd"] = decode["tokens_per_s"]
    return rates


def run_json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def compare(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds: both rates, and the ratio within a round; the ratio that is wanted."""
    return {
        what: {
            "cellmd": round(statistics.median(each[what]["cellmd"] for each in rounds), 2),
            "peer": round(statistics.median(each[what]["peer"] for each in rounds), 2),
            "ratio": round(statistics.median(each[what]["cellmd"] / each[what]["peer"] for each in rounds), 3),
            "wanted": WANTED[what.split()[0]],
        }
        for what in rounds[0]
    }


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"{'tokens/s':<18}{'cellmd':>10}{'llama.cpp':>12}{'ratio':>9}{'wanted':>9}"]
    for what, row in figures.items():
        lines.append(f"{what:<18}{row['cellmd']:>10.1f}{row['peer']:>12.1f}{row['ratio']:>9.2f}{row['wanted']:>9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
