"""How near the GPU kernels come to what the device can do, at the shapes of Gemma 4 E2B.

    python bench/cuda/kernels.py [--rows 1,8,64] [--contexts 512,16384] [--step-only]

Two ceilings are measured first: bytes a second of a large copy within the device, read and written, and operations a
second of a large bfloat16 product by torch. Each kernel is then called on data that is not in the L2 cache, many calls
in one CUDA graph, as a decoding step runs them; a figure is the median of the graph's replays. The last lines are whole
steps: embedding, 35 layers, head and the largest 64 logits, in kernels alone, of a model with random weights. Bytes are
weights, scales, keys and values: what must be read. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from shapes import BF16, EPS, FFN, GROUP, HEADS, PLE, VOCABULARY, WINDOW, D, Step, bytes_of, matrix, norm
from timing import call_us, copy_bytes_per_s, graph_of, product_flops, replay_us

from cellmd.backends.cuda.kernels.attention import Raw, decode_attention, prefill_attention
from cellmd.backends.cuda.kernels.linear import Residual, geglu, linear, open_linear
from cellmd.backends.cuda.kernels.lookup import decoded
from cellmd.backends.cuda.kernels.norms import add_norm_, rms_norm
from cellmd.backends.cuda.kernels.top_k import top_k

COLD_BYTES = 192 << 20
"""Data that calls go around in: several times the L2 cache."""

PRODUCTS = {
    # name: columns, outputs, calls a token (layers that have it)
    "q, k, v sliding": (D, (2048, 256, 256), 12),
    "q, k, v full": (D, (4096, 512, 512), 3),
    "q sliding, late": (D, (2048,), 16),
    "q full, late": (D, (4096,), 4),
    "o sliding": (2048, (D,), 28),
    "o full": (4096, (D,), 7),
    "down": (FFN, (D,), 15),
    "down, late": (2 * FFN, (D,), 20),
    "own projection": (PLE, (D,), 35),
    "head": (D, (VOCABULARY,), 1),
}
GATED = {"geglu": (FFN, 15), "geglu, late": (2 * FFN, 20), "own gate": (PLE, 35)}


class Table:
    """Prints a row a kernel and keeps it for the JSON line."""

    def __init__(self, copy_rate: float, flops: float) -> None:
        self._copy_rate, self._flops = copy_rate, flops
        self.rows: list[dict[str, object]] = []

    def add(self, name: str, n_rows: int, us: float, n_bytes: float, operations: float = 0.0) -> None:
        of_bytes, of_flops = n_bytes / us * 1e6 / self._copy_rate, operations / us * 1e6 / self._flops
        print(
            f"{name:24} {n_rows:5} {us:9.2f} us {n_bytes / us / 1e3:8.0f} GB/s {of_bytes:5.0%} {of_flops:5.0%}",
            flush=True,
        )
        self.rows.append(
            {"kernel": name, "rows": n_rows, "us": us, "bytes": n_bytes, "of_copy": of_bytes, "of_products": of_flops}
        )


def copies(n_bytes: int) -> int:
    return max(4, min(64, -(-COLD_BYTES // n_bytes)))


def products(table: Table, n_rows: int) -> None:
    for name, (columns, outputs, _) in PRODUCTS.items():
        sets = [[matrix(n, columns) for n in outputs] for _ in range(copies(sum(outputs) * columns // 2))]
        x = torch.randn(n_rows, columns, device="cuda")
        if columns != D:
            us = call_us([partial(open_linear, x.to(BF16), *one) for one in sets])
        elif n_rows == 1:
            options = {"norm_weight": norm(D), "residual": Residual(x * 0.5, norm(D), torch.empty_like(x)), "eps": EPS}
            us = call_us([partial(linear, x, one, **options) for one in sets])
        else:
            us = call_us([partial(linear, x, one) for one in sets])
        weights = sum(outputs) * columns
        table.add(name, n_rows, us, sum(bytes_of(one) for one in sets[0]), 2 * n_rows * weights)
    for name, (width, _) in GATED.items():
        own = name == "own gate"
        sets = [(matrix(width, D), None if own else matrix(width, D)) for _ in range(copies(width * D))]
        x, other = torch.randn(n_rows, D, device="cuda"), torch.randn(n_rows, width, device="cuda")
        options = {"dtype": BF16}
        if n_rows == 1:
            residual = Residual(x * 0.5, norm(D), torch.empty_like(x))
            options |= {"norm_weight": None if own else norm(D), "residual": residual, "eps": EPS}
        us = call_us([partial(geglu, x, gate, other if up is None else up, **options) for gate, up in sets])
        n_bytes = sum(bytes_of(one) for one in sets[0] if one is not None)
        table.add(name, n_rows, us, n_bytes, 2 * n_rows * D * width * (1 if own else 2))


def small(table: Table, n_rows: int) -> None:
    x, y = torch.randn(2, n_rows, D, device="cuda")
    weight = norm(D)
    table.add("norm", n_rows, call_us([lambda: rms_norm(x, weight, EPS)] * 20), 8 * x.numel())
    us = call_us([lambda: add_norm_(x, y, weight, EPS, 0.5, next_weight=weight)] * 20)
    table.add("add and two norms", n_rows, us, 14 * x.numel())
    logits = torch.randn(n_rows, VOCABULARY, device="cuda")
    table.add("largest 64 logits", n_rows, call_us([lambda: top_k(logits, 64)] * 4), logits.nbytes)


def attention(table: Table, n_rows: int, context: int) -> None:
    integers = {"dtype": torch.int32, "device": "cuda"}
    slots, positions = torch.arange(n_rows, **integers), torch.full((n_rows,), context - 1, **integers)
    for full in (False, True):
        head_dim = 512 if full else 256
        seen = context if full else min(context, WINDOW)
        places = context if full else WINDOW + 127
        n_bytes = 2 * n_rows * seen * head_dim * 2
        shape = n_rows, places, 1, head_dim
        caches = [
            [torch.randn(shape, device="cuda").to(BF16) for _ in range(2)] for _ in range(min(16, copies(n_bytes)))
        ]
        q = torch.randn(n_rows, HEADS, head_dim, device="cuda")
        at, window = (places, slots, positions), 0 if full else WINDOW
        raw = Raw(norm(head_dim), torch.rand(n_rows, 2, 64, device="cuda"), EPS)
        us = call_us(
            [partial(decode_attention, q, *one, *at, window, raw=raw, joined=n_rows == 1, dtype=BF16) for one in caches]
        )
        name = f"attention {'full' if full else 'window'} {context}"
        table.add(name, n_rows, us, n_bytes, 4 * n_rows * HEADS * seen * head_dim)


def prompt(table: Table, n_rows: int) -> None:
    integers = {"dtype": torch.int32, "device": "cuda"}
    slots, positions = torch.zeros(n_rows, **integers), torch.arange(n_rows, **integers)
    for full in (False, True):
        head_dim, window = (512, 0) if full else (256, WINDOW)
        keys, values = torch.randn(2, 1, n_rows, 1, head_dim, device="cuda").to(BF16)
        q = torch.randn(n_rows, HEADS, head_dim, device="cuda").to(BF16)
        us = call_us([partial(prefill_attention, q, keys, values, n_rows, slots, positions, window, dtype=BF16)] * 2)
        pairs = n_rows * n_rows / 2 if full else n_rows * WINDOW - WINDOW**2 / 2
        name = f"prompt {'full' if full else 'window'}"
        table.add(name, n_rows, us, 4 * n_rows * head_dim, 4 * HEADS * pairs * head_dim)
    held = [matrix(2 * FFN, D) for _ in range(16)]
    out = torch.empty((2 * FFN, D), dtype=BF16, device="cuda")
    us = call_us([lambda one=one: decoded(one, out) for one in held])
    table.add("decode INT4", 2 * FFN, us, bytes_of(held[0]) + out.nbytes)
    x = torch.randn(n_rows, D, device="cuda").to(BF16)
    us = call_us([lambda one=one: torch.mm(x, decoded(one, out).t(), out_dtype=torch.float32) for one in held])
    table.add("decode INT4, product", n_rows, us, bytes_of(held[0]), 2 * n_rows * 2 * FFN * D)


def step(table: Table, n_rows: int, context: int) -> None:
    one = Step(n_rows, context)
    us = replay_us(graph_of(one.run))
    seen_bytes = sum(
        4 * n_rows * (context if layer.full else min(context, WINDOW)) * layer.head_dim for layer in one.layers
    )
    table.add(f"whole step {context}", n_rows, us, one.weight_bytes() + seen_bytes, 4 * n_rows * one.weight_bytes())
    print(f"{'':24} {n_rows / us * 1e6:8.0f} tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,64", help="numbers of rows of a decoding step")
    parser.add_argument("--contexts", default="512,16384")
    parser.add_argument("--step-only", action="store_true", help="whole steps alone")
    arguments = parser.parse_args()
    rows = [int(n) for n in arguments.rows.split(",")]
    contexts = [int(n) for n in arguments.contexts.split(",")]
    torch.manual_seed(0)
    copy_rate, flops = copy_bytes_per_s(), product_flops()
    print(f"{torch.cuda.get_device_name()}: copies {copy_rate / 1e9:.0f} GB/s, products {flops / 1e12:.0f} TFLOP/s")
    table = Table(copy_rate, flops)
    print(f"{'kernel':24} {'rows':>5} {'time':>12} {'':>13} {'copy':>5} {'prod':>5}")
    stages: list[Callable[[], None]] = []
    if not arguments.step_only:
        for n in rows:
            stages += [lambda n=n: products(table, n), lambda n=n: small(table, n)]
            stages += [lambda n=n, c=c: attention(table, n, c) for c in contexts if n * c <= 1 << 18]
        stages.append(lambda: prompt(table, 4096))
    stages += [lambda n=n, c=c: step(table, n, c) for n in rows for c in contexts if n * c <= 1 << 18]
    for stage in stages:
        stage()
        torch.cuda.empty_cache()
    ceilings = {"copy_bytes_per_s": copy_rate, "product_flops": flops}
    print(json.dumps({"device": torch.cuda.get_device_name(), **ceilings, "group": GROUP, "kernels": table.rows}))


if __name__ == "__main__":
    main()
