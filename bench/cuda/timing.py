"""Time on the device: a graph of many calls, replayed; and what the device can do at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch


def graph_of(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The launches of a function, after it has run once to compile them."""
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, rounds: int = 15) -> float:
    """Median of the replays, in microseconds."""
    for _ in range(3):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in events) * 1000


def call_us(calls: list[Callable[[], object]], rounds: int = 15) -> float:
    """Median time of a call: all of them, on different data, in one graph."""

    def run() -> None:
        for call in calls:
            call()

    return replay_us(graph_of(run), rounds) / len(calls)


def copy_bytes_per_s(rounds: int = 15) -> float:
    """Bytes read and written a second by the largest kind of copy within the device. By launches, not in a graph: there
    a copy is no kernel, and slower."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds + 3)]
    for start, stop in events:
        start.record()
        target.copy_(source)
        stop.record()
    torch.cuda.synchronize()
    return 2 * source.numel() / statistics.median(start.elapsed_time(stop) for start, stop in events[3:]) * 1e3


def product_flops() -> float:
    """Operations a second of a large bfloat16 product by torch."""
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    return 2 * 8192**3 / call_us([lambda: a @ b] * 4) * 1e6
