"""How near the native kernels come to what the machine can do, at the shapes of Gemma 4 E2B.

    python bench/kernels/kernels.py [--threads N] [--tokens 512] [--rounds 9] [--json]

Two ceilings are measured in the same run and alternately with the kernels, so that what disturbs the one disturbs the
other: bytes a second read from memory by all threads, and int8 multiply-adds a second in registers. Products of one
token are held against the first, products of a prompt against the second. Matrices are cycled through more memory than
any cache holds. Figures are medians over the rounds; a percentage is the median of the percentages of the rounds.

Read in milliseconds of one call. Attention is held against a quarter of the int8 ceiling: float32 has a quarter of the
lanes of an int8 product in every instruction set here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from cellmd.backends.cpu import create
from cellmd.backends.cpu.operations import CpuOps
from cellmd.quant.tensor import Coding, PackedTensor

CODING = Coding("i4", "tile16", 128, "i8")
READ_BYTES = 1 << 28
COLD_BYTES = 192 << 20
"""Weights of a shape that are cycled through: several times the last-level cache."""

MATRICES = {
    "head": (262_144, 1536),
    "gate or up, late layers": (12_288, 1536),
    "down, late layers": (1536, 12_288),
    "gate or up": (6144, 1536),
    "down": (1536, 6144),
    "q, sliding": (2048, 1536),
    "k or v": (256, 1536),
    "output, full": (1536, 4096),
    "vision gate or up": (3072, 768),
    "audio feed-forward": (4096, 1024),
}
PROMPT_MATRICES = [name for name in MATRICES if name != "head" and "late" not in name]


@dataclass(frozen=True)
class Row:
    """One kernel at one shape: milliseconds of a call, what it does a second, its share of the ceiling in percent."""

    kernel: str
    shape: str
    ms: float
    rate: float
    unit: str
    percent: float


class Bench:
    def __init__(self, ops: CpuOps, rounds: int) -> None:
        self.ops = ops
        self.rounds = rounds
        self.rng = np.random.default_rng(0)
        self._memory = np.ones(READ_BYTES, np.uint8)
        self.rows: list[Row] = []
        self.read_rates: list[float] = []
        self.mac_rates: list[float] = []

    def read_rate(self) -> float:
        """Bytes a second, now."""
        rate = READ_BYTES / min(self.ops._native.time_read(self._memory) for _ in range(2))
        self.read_rates.append(rate)
        return float(rate)

    def mac_rate(self) -> float:
        """int8 multiply-adds a second, now."""
        done, seconds = min(
            (self.ops._native.time_multiply(100_000) for _ in range(2)), key=lambda run: run[1] / run[0]
        )
        self.mac_rates.append(done / seconds)
        return float(done / seconds)

    def measure(
        self, kernel: str, shape: str, call: Callable[[], object], work: float, unit: str, ceiling: Callable[[], float]
    ) -> None:
        """Times rounds of `call`, each between two readings of the ceiling. work: bytes or multiply-adds of a call."""
        times, shares = [], []
        call()
        before = ceiling()
        for _ in range(self.rounds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
            after = ceiling()
            shares.append(100 * work / times[-1] / max(before, after))
            before = after
        seconds = statistics.median(times)
        row = Row(kernel, shape, seconds * 1e3, work / seconds / 1e9, unit, statistics.median(shares))
        self.rows.append(row)

    def matrix(self, n: int, k: int) -> object:
        groups = -(-k // CODING.group_size)
        packed = PackedTensor(
            "w",
            (n, k),
            CODING,
            self.rng.integers(0, 256, n * k // 2, dtype=np.uint8),
            self.rng.integers(1, 256, n * groups, dtype=np.uint8),
            np.full(n, 1e-4, np.float32),
        )
        return self.ops.matrix(packed)

    def activations(self, n: int, k: int) -> object:
        return self.ops.floats(self.rng.standard_normal((n, k), dtype=np.float32))

    def products(self, tokens: int) -> None:
        """A token's products against reading, a prompt's against multiplying."""
        for name, (n, k) in MATRICES.items():
            n_bytes = n * k / 2 + n * k / CODING.group_size + 4 * n
            weights = [self.matrix(n, k) for _ in range(max(1, round(COLD_BYTES / n_bytes)))]
            one = self.activations(1, k)

            def all_of_them(one: object = one, weights: list[object] = weights) -> None:
                for matrix in weights:
                    self.ops.linear(one, matrix)

            self.measure("1 token", f"{name} {n} x {k}", all_of_them, n_bytes * len(weights), "GB/s", self.read_rate)
            if name in PROMPT_MATRICES:
                many, matrix = self.activations(tokens, k), weights[0]
                self.measure(
                    f"{tokens} tokens",
                    f"{name} {n} x {k}",
                    lambda many=many, matrix=matrix: self.ops.linear(many, matrix),
                    n * k * tokens,
                    "GMAC/s",
                    self.mac_rate,
                )
        n, k = MATRICES["gate or up"]
        gate, up, many = self.matrix(n, k), self.matrix(n, k), self.activations(tokens, k)
        weight = self.ops.floats(np.ones(k, np.float32))
        self.measure(
            f"{tokens} tokens",
            "norm, gate, up and GELU",
            lambda: self.ops.norm_geglu(many, weight, 1e-6, gate, up),
            2 * n * k * tokens,
            "GMAC/s",
            self.mac_rate,
        )

    def attention(self, tokens: int) -> None:
        for name, head_dim, window in (("sliding", 256, 512), ("full", 512, 0)):
            for rows in (1, tokens):
                cache = self.ops.new_cache(1, 2 * tokens, 1, head_dim)
                slots, positions = self.ops.ints([0] * (2 * tokens)), self.ops.ints(range(2 * tokens))
                keys = self.ops.floats(self.rng.standard_normal((2 * tokens, 1, head_dim), dtype=np.float32))
                self.ops.append_(cache, keys, keys, slots, positions)
                q = self.ops.floats(self.rng.standard_normal((rows, 8, head_dim), dtype=np.float32) / 16)
                at = range(2 * tokens - rows, 2 * tokens)
                asked, slot = self.ops.ints(at), self.ops.ints([0] * rows)
                macs = sum(min(p + 1, window or p + 1) for p in at) * 8 * head_dim * 2
                self.measure(
                    "attention",
                    f"{name}, {rows} of {2 * tokens} tokens",
                    lambda q=q, cache=cache, slot=slot, asked=asked, window=window: self.ops.attention(
                        q, cache, slot, asked, window
                    ),
                    macs,
                    "GMAC/s",
                    lambda: self.mac_rate() / 4,
                )
        q = self.ops.floats(self.rng.standard_normal((2304, 12, 64), dtype=np.float32) / 8)
        self.measure(
            "attention",
            "a picture of 2304 patches",
            lambda: self.ops.attention_bidirectional(q, q, q),
            2304 * 2304 * 12 * 64 * 2,
            "GMAC/s",
            lambda: self.mac_rate() / 4,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=512, help="length of a prompt")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ops = create(arguments.threads)
    bench = Bench(ops, arguments.rounds)
    bench.products(arguments.tokens)
    bench.attention(arguments.tokens)
    read, macs = max(bench.read_rates) / 1e9, max(bench.mac_rates) / 1e9
    if arguments.json:
        machine = {
            "instruction_set": ops.instruction_set,
            "threads": ops.threads,
            "read_gb_s": read,
            "int8_gmac_s": macs,
        }
        print(json.dumps({"machine": machine, "kernels": [asdict(row) for row in bench.rows]}))
        return
    print(f"{ops.instruction_set}, {ops.threads} threads: reads {read:.1f} GB/s, multiplies {macs:.0f} int8 GMAC/s")
    for row in bench.rows:
        print(f"{row.kernel:12}{row.shape:40}{row.ms:10.3f} ms{row.rate:9.1f} {row.unit:7}{row.percent:5.0f} %")


if __name__ == "__main__":
    main()
