"""What a long context costs a file: memory of keys and values, and the rates of decoding and reading at a distance.

    python bench/long_context.py e2b.cellmd [--lengths 512 32768 131000] [--steps 15] [--rounds 3] [--kv-cache f16]
    python bench/long_context.py e2b.cellmd --prompt 32768

The cache is filled with random keys and values instead of running a prompt of the length, which would take its square;
a decoding step reads them all the same. Lengths take turns, so that what disturbs one disturbs the others; a rate is
the median over all steps; then each sequence reads 512 tokens more. Memory is the process's own, not pages of the file.

With --prompt one prompt of random tokens is read from its beginning, and nothing else is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from cellmd.backends import create
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.models.gemma4 import Gemma4
from cellmd.runtime.batch import Sequence
from cellmd.runtime.generate import Runner
from cellmd.runtime.kv_cache import KvCache

_ROWS = 4096
"""Rows that are written to a cache at a time."""

_READ_TOKENS = 512


def fill(runner: Runner, slot: int, length: int, rng: np.random.Generator) -> Sequence:
    """A sequence of random tokens whose first `length` positions have random keys and values of unit variance."""
    ops, config = runner.model.ops, runner.model.config.text
    for layer, cache in zip(config.layers, runner.cache.layers, strict=True):
        if cache is None:
            continue
        first = max(0, length - layer.window) if layer.window else 0
        for start in range(first, length, _ROWS):
            n = min(_ROWS, length - start)
            shape = (n, layer.n_kv_heads, layer.head_dim)
            keys, values = (ops.floats(rng.standard_normal(shape, dtype=np.float32)) for _ in range(2))
            ops.append_(cache, keys, values, ops.ints([slot] * n), ops.ints(range(start, start + n)))
            ops.begin()
    return Sequence(slot, rng.integers(0, config.vocab_size, length).tolist(), n_done=length)


def read_s(runner: Runner, sequence: Sequence, n: int, rng: np.random.Generator) -> float:
    """Seconds until the logits after n random tokens more are there."""
    sequence.token_ids.extend(rng.integers(0, runner.model.config.text.vocab_size, n).tolist())
    began = time.perf_counter()
    runner.prefill(sequence).best(1)
    return time.perf_counter() - began


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 32_768, 131_000])
    parser.add_argument("--steps", type=int, default=15, help="decoding steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, help="tokens of a prompt that is read from its beginning")
    parser.add_argument("--kv-cache", choices=("f16", "f32", "i8"))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    ops = create("cpu", arguments.threads, arguments.kv_cache)
    rng = np.random.default_rng(0)
    with Container.open(arguments.file) as container:
        config = ModelConfig.from_dict(container.config)
        model = Gemma4(ops, config, container.tensors)
        if arguments.prompt:
            cache = KvCache(ops, config.text, n_slots=1, context=arguments.prompt, chunk=ops.prompt_rows)
            runner = Runner(model, cache)
            seconds = read_s(runner, Sequence(0, []), arguments.prompt, rng)
            print(f"a prompt of {arguments.prompt}: {seconds:.1f} s, {arguments.prompt / seconds:.0f} tokens/s")
            return
        context = max(arguments.lengths) + arguments.steps * arguments.rounds + _READ_TOKENS
        runners = [
            Runner(model, KvCache(ops, config.text, n_slots=1, context=context, chunk=ops.prompt_rows))
            for _ in arguments.lengths
        ]
        sequences, grown = [], []
        for runner, length in zip(runners, arguments.lengths, strict=True):
            before = private_bytes()
            sequences.append(fill(runner, 0, length, rng))
            grown.append(private_bytes() - before)
        times: list[list[float]] = [[] for _ in sequences]
        for _ in range(arguments.rounds):
            for runner, sequence, measured in zip(runners, sequences, times, strict=True):
                for _ in range(arguments.steps):
                    sequence.token_ids.append(int(rng.integers(0, config.text.vocab_size)))
                    began = time.perf_counter()
                    runner.step(sequence).best(1)
                    measured.append(time.perf_counter() - began)
        base = statistics.median(times[0])
        for runner, sequence, length, n_bytes, measured in zip(
            runners, sequences, arguments.lengths, grown, times, strict=True
        ):
            median = statistics.median(measured)
            estimate = runner.cache.bytes_for(length)
            seconds = read_s(runner, sequence, _READ_TOKENS, rng)
            print(
                f"{length:7} positions: {n_bytes / 1e6:7.1f} MB grown, {estimate / 1e6:7.1f} MB estimated, "
                f"{1 / median:6.1f} tokens/s ({100 * base / median:.0f} % of the first), "
                f"reads on at {_READ_TOKENS / seconds:.0f} tokens/s"
            )


if __name__ == "__main__":
    main()
