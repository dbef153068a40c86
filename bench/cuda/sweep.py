"""Which tiles are the fastest, at the shapes of Gemma 4 E2B: what the tables in `backends/cuda/kernels` are made from.

    python bench/cuda/sweep.py [--processes 14] [--best 6]

Every candidate is compiled first, by so many processes, into Triton's cache. Candidates that a device has no room for
are passed over. JSON lines: case, tile, microseconds, in the order of speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import product

import torch
from shapes import BF16, EPS, HEADS, WINDOW, D, matrix, norm
from timing import call_us

from cellmd.backends.cuda.kernels import attention as attend
from cellmd.backends.cuda.kernels.linear import Residual, Tile, geglu, linear, open_linear
from kernels import GATED, PRODUCTS, copies

Call = Callable[[], object]
Candidate = tuple[str, object, Callable[[], list[Call]]]
"""Case, tile, and what makes the calls to be timed."""


def product_tiles(columns: int, n_rows: int, *, double: bool) -> Iterator[Tile]:
    """With one row and the norm in front all pieces at once; else programs may share the columns."""
    pieces = columns // 128
    whole = 1 << (pieces - 1).bit_length()
    if n_rows == 1:
        for outputs, warps, count in product((8, 16, 32), (4, 8), (1, 2, 4, 8, 16)):
            splits = pieces // count
            fits = count == whole if columns == D else splits * count == pieces and splits <= 8
            held = outputs * count * (2 if double else 1)
            if fits and 8 * warps <= held <= 128 * warps:
                yield Tile(outputs, count, warps, splits=max(1, splits))
        if columns == D:
            for outputs, warps in product((8, 16, 32, 64), (4, 8)):
                if 2 * warps <= outputs <= 16 * warps:
                    yield Tile(outputs, 4, warps, ready=True)
        return
    for outputs, count, warps, stages, splits in product((16, 32, 64, 128), (1, 2, 4), (4, 8), (3, 4), (1, 2, 4)):
        least = 2 * warps if count == 1 else 0
        if least <= outputs and outputs * count <= 32 * warps and (splits == 1 or columns > D):
            yield Tile(outputs, count, warps, stages, splits)


def candidates(rows: list[int], *, prompts: bool = False) -> Iterator[Candidate]:
    for n_rows in rows:
        names = ("q, k, v sliding", "o sliding", "down", "down, late", "own projection", "head")
        for name in names if n_rows == 1 else ("q, k, v sliding", "o sliding", "down, late", "head"):
            columns, outputs, _ = PRODUCTS[name]
            for tile in product_tiles(columns, n_rows, double=False):
                yield f"{name} x {n_rows}", tile, partial(product_calls, n_rows, columns, outputs, tile)
        for name in ("geglu", "geglu, late", "own gate") if n_rows == 1 else ("geglu, late",):
            width, _ = GATED[name]
            for tile in product_tiles(D, n_rows, double=name != "own gate"):
                yield f"{name} x {n_rows}", tile, partial(gated_calls, n_rows, width, tile)
    cases = ((False, 512, 1), (True, 512, 1), (True, 16384, 1), (False, 512, 64), (True, 512, 64))
    for (full, context, n_rows), positions, warps, shares in product(
        cases, (16, 32, 64), (4, 8), (2, 4, 8, 16, 32, 64, 128)
    ):
        usual = 4 if n_rows > 1 else (128 if context > 512 else 16)
        if n_rows in rows and positions * (2 if full else 1) <= 64 and usual // 2 <= shares <= 2 * usual:
            tile = attend.Tile(positions, warps, 3)
            case = f"attention {'full' if full else 'window'} {context} x {n_rows}"
            yield f"{case}, {shares} shares", tile, partial(attention_calls, full, context, n_rows, shares, tile)
    for full in (False, True) if prompts else ():
        for block, positions, warps, stages in product((8, 16), (32, 64), (4, 8), (2, 3)):
            if full and positions * stages > 96:
                continue
            tile = attend.Tile(positions, warps, stages, block)
            yield f"prompt {'full' if full else 'window'}", tile, partial(prompt_calls, full, tile)


_MADE: dict[object, object] = {}


def made(key: object, make: Callable[[], object]) -> object:
    """What was made last for a key: candidates of one case share their data, and only those."""
    if key not in _MADE:
        _MADE.clear()
        torch.cuda.empty_cache()
        _MADE[key] = make()
    return _MADE[key]


def product_calls(n_rows: int, columns: int, outputs: tuple[int, ...], tile: Tile) -> list[Call]:
    count = copies(sum(outputs) * columns // 2)
    sets = made((columns, outputs), lambda: [[matrix(n, columns) for n in outputs] for _ in range(count)])
    x = torch.randn(n_rows, columns, device="cuda")
    if columns != D:
        return [partial(open_linear, x.to(BF16), *one, tile=tile) for one in sets]
    if n_rows > 1:
        return [partial(linear, x.to(BF16), one, tile=tile) for one in sets]
    options = {"norm_weight": norm(D), "residual": Residual(x * 0.5, norm(D), torch.empty_like(x)), "eps": EPS}
    return [partial(linear, x, one, tile=tile, **options) for one in sets]


def gated_calls(n_rows: int, width: int, tile: Tile) -> list[Call]:
    count = copies(width * D)
    sets = made(width, lambda: [[matrix(width, D) for _ in range(2)] for _ in range(count)])
    x, other = torch.randn(n_rows, D, device="cuda"), torch.randn(n_rows, width, device="cuda")
    options: dict[str, object] = {"dtype": BF16}
    if n_rows == 1:
        options |= {"norm_weight": norm(D), "residual": Residual(x * 0.5, norm(D), torch.empty_like(x)), "eps": EPS}
    else:
        x = x.to(BF16)
    own = width < D
    return [partial(geglu, x, gate, other if own else up, tile=tile, **options) for gate, up in sets]


def attention_calls(full: bool, context: int, n_rows: int, shares: int, tile: attend.Tile) -> list[Call]:
    integers = {"dtype": torch.int32, "device": "cuda"}
    head_dim, window = (512, 0) if full else (256, WINDOW)
    places = context if full else WINDOW + 127
    shape = n_rows, places, 1, head_dim
    caches = made(shape, lambda: [torch.randn((2, *shape), device="cuda").to(BF16) for _ in range(8)])
    slots, positions = torch.arange(n_rows, **integers), torch.full((n_rows,), context - 1, **integers)
    q = torch.randn(n_rows, HEADS, head_dim, device="cuda")
    raw = attend.Raw(norm(head_dim), torch.rand(n_rows, 2, 64, device="cuda"), EPS)
    options = {"raw": raw, "joined": n_rows == 1, "dtype": BF16, "shares": shares, "tile": tile}
    return [partial(attend.decode_attention, q, *one, places, slots, positions, window, **options) for one in caches]


def prompt_calls(full: bool, tile: attend.Tile) -> list[Call]:
    n_rows = 4096
    integers = {"dtype": torch.int32, "device": "cuda"}
    head_dim, window = (512, 0) if full else (256, WINDOW)
    slots, positions = torch.zeros(n_rows, **integers), torch.arange(n_rows, **integers)
    keys, values = torch.randn(2, 1, n_rows, 1, head_dim, device="cuda").to(BF16)
    q = torch.randn(n_rows, HEADS, head_dim, device="cuda").to(BF16)
    return [lambda: attend.prefill_attention(q, keys, values, n_rows, slots, positions, window, dtype=BF16, tile=tile)]


def compile_share(share: int, processes: int, everything: list[Candidate]) -> None:
    for _, _, calls in everything[share::processes]:
        try:
            calls()[0]()
        except Exception:
            continue
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--prompts", action="store_true", help="attention of prompts too")
    parser.add_argument("--best", type=int, default=6)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = [int(n) for n in arguments.rows.split(",")]
    everything = list(candidates(rows, prompts=arguments.prompts))
    if arguments.share is not None:
        compile_share(arguments.share, arguments.processes, everything)
        return
    command = [sys.executable, *sys.argv, "--share"]
    others = [subprocess.Popen([*command, str(share)]) for share in range(arguments.processes)]
    for other in others:
        other.wait()
    results: dict[str, list[tuple[float, object]]] = {}
    for case, tile, calls in everything:
        try:
            us = call_us(calls(), rounds=7)
        except Exception as error:
            print(f"{case} {tile}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            continue
        results.setdefault(case, []).append((us, tile))
    for case, timed in results.items():
        for us, tile in sorted(timed, key=lambda pair: pair[0])[: arguments.best]:
            print(json.dumps({"case": case, "us": round(us, 2), **asdict(tile)}))


if __name__ == "__main__":
    main()
