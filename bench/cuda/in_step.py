"""Which tiles make a whole decoding step of one row the fastest, at the shapes of Gemma 4 E2B.

    python bench/cuda/in_step.py [--processes 14] [--context 512]

What is fastest by itself, called again and again (`sweep.py`), need not be so among others: there a kernel's
instructions come anew each time, and what it keeps busy is not there for the next. So one product after another gets
the tile with which the whole step takes least, the others as they are best so far. Every candidate is compiled first,
by so many processes; those that a device has no room for are passed over. JSON lines: product, tile, microseconds of
the step, in the order of speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from itertools import product

import torch
from shapes import FFN, PLE, VOCABULARY, Step
from timing import graph_of, replay_us
from triton.runtime.errors import OutOfResources

from cellmd.backends.cuda.kernels import linear
from cellmd.backends.cuda.kernels.linear import Tile
from cellmd.backends.cuda.weights import DeviceMatrix


def of_inputs(outputs: tuple[int, ...], *, ready: bool = True) -> list[Tile]:
    """For products of the residual stream: all pieces at once, or made ready by a launch of their own."""
    alone = [Tile(n, 16, warps) for n, warps in product(outputs, (4, 8))]
    return alone + [Tile(n, 4, warps, ready=True) for n, warps in product(outputs, (4, 8)) if ready]


def in_parts(pieces: int, counts: tuple[int, ...]) -> list[Tile]:
    return [Tile(n, count, warps, splits=pieces // count) for n, count, warps in product((8, 16, 32), counts, (4, 8))]


CANDIDATES = {
    "own gate": of_inputs((4, 8, 16)),
    "q, k, v": of_inputs((8, 16, 32)),
    "o sliding": in_parts(16, (4, 8, 16)),
    "o full": in_parts(32, (4, 8, 16)),
    "down": in_parts(48, (8, 16)),
    "down, late": in_parts(96, (8, 16, 32)),
    "gate, up": [Tile(n, 4, warps, ready=True) for n, warps in product((8, 16, 32, 64), (4, 8))],
    "own projection": [Tile(n, 2, warps) for n, warps in product((8, 16, 32), (1, 2, 4))],
    "head": [Tile(n, 4, warps, ready=True) for n, warps in product((16, 32, 64), (4, 8))],
}

_OPEN = {PLE: "own projection", 2048: "o sliding", 4096: "o full", FFN: "down", 2 * FFN: "down, late"}


class Tiles:
    """The tiles of a step: the kernels' own, but for those that are set here."""

    def __init__(self) -> None:
        self.of: dict[str, Tile] = {}
        self._tile, self._open_tile = linear._tile, linear._open_tile
        linear._tile, linear._open_tile = self._chosen, self._chosen_open

    def _chosen(self, n_rows: int, matrix: DeviceMatrix, *, double: bool) -> Tile:
        usual = {VOCABULARY: "head", PLE: "own gate"}.get(matrix.shape[0], "q, k, v")
        name = "gate, up" if double else usual
        return self.of.get(name) or self._tile(n_rows, matrix, double=double)

    def _chosen_open(self, n_rows: int, matrix: DeviceMatrix) -> Tile:
        return self.of.get(_OPEN[matrix.shape[1]]) or self._open_tile(n_rows, matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    step, tiles = Step(1, arguments.context), Tiles()
    everything = [(name, tile) for name, candidates in CANDIDATES.items() for tile in candidates]
    if arguments.share is not None:
        for name, tile in everything[arguments.share :: arguments.processes]:
            tiles.of = {name: tile}
            with suppress(OutOfResources):
                step.run()
        torch.cuda.synchronize()
        return
    command = [sys.executable, *sys.argv, "--share"]
    others = [subprocess.Popen([*command, str(share)]) for share in range(arguments.processes)]
    for other in others:
        other.wait()
    print(json.dumps({"product": "as it is", "step_us": round(replay_us(graph_of(step.run)), 1)}), flush=True)
    for name, candidates in CANDIDATES.items():
        timed = []
        best = dict(tiles.of)
        for tile in candidates:
            tiles.of = {**best, name: tile}
            with suppress(OutOfResources):
                timed.append((replay_us(graph_of(step.run)), tile))
        timed.sort(key=lambda pair: pair[0])
        tiles.of = {**best, name: timed[0][1]}
        for us, tile in timed:
            print(json.dumps({"product": name, "step_us": round(us, 1), **asdict(tile)}), flush=True)


if __name__ == "__main__":
    main()
