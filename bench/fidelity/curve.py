"""Draws docs/fidelity.svg: divergence over bits a weight, from the points of bench/fidelity/results.jsonl.

    python bench/fidelity/curve.py

A point is a JSON line {"name", "bits", "kl", "kind"}; kind is "peer", "data-free" or "calibrated".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "docs" / "fidelity.svg"

FONT, LETTER = 12, 6.5
"""Height of a line and mean width of a letter, in pixels."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 820, 480, 70, 60, 30, 30
COLOURS = {"peer": "#888888", "data-free": "#c4572b", "calibrated": "#1b6ca8"}
BITS = (4.0, 5.0)
KL = (0.05, 3.0)
GRID_KL = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def x_of(bits: float) -> float:
    return LEFT + (bits - BITS[0]) / (BITS[1] - BITS[0]) * (WIDTH - LEFT - RIGHT)


def y_of(kl: float) -> float:
    share = math.log(kl / KL[0]) / math.log(KL[1] / KL[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def drawing(points: list[dict[str, Any]]) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="{FONT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tenth in range(40, 51, 2):
        x = x_of(tenth / 10)
        parts += [line(x, TOP, x, HEIGHT - BOTTOM), text(x, HEIGHT - BOTTOM + 18, f"{tenth / 10:.1f}")]
    for kl in GRID_KL:
        y = y_of(kl)
        parts += [line(LEFT, y, WIDTH - RIGHT, y), text(LEFT - 8, y + 4, f"{kl:g}", "end")]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "bits a weight, scales and embedding included"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    axis = "mean KL divergence from the float model, nats (log scale)"
    parts.append(f'<g transform="rotate(-90 18 {middle})">{text(18, middle, axis)}</g>')
    for i, (kind, colour) in enumerate(COLOURS.items()):
        x, y = WIDTH - RIGHT - 110, TOP + 16 + 18 * i
        parts += [f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colour}"/>', text(x + 12, y, kind, "start", colour)]
    taken: list[tuple[float, float, float]] = []  # by labels: from and to, and their line
    for point in sorted(points, key=lambda point: -point["kl"]):
        x, y, colour = x_of(point["bits"]), y_of(point["kl"]), COLOURS[point["kind"]]
        label = f"{point['name']} {point['kl']:.3f}"
        width = LETTER * len(label)
        anchor, left = ("start", x + 9) if point["bits"] < sum(BITS) / 2 + 0.1 else ("end", x - 9 - width)
        line_y = y + 4
        while any(left < end and start < left + width and abs(line_y - other) < FONT for start, end, other in taken):
            line_y += 1
        taken.append((left, left + width, line_y))
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            text(left if anchor == "start" else left + width, line_y, label, anchor, colour),
        ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    points = [json.loads(each) for each in (HERE / "results.jsonl").read_text().splitlines()]
    TARGET.write_text(drawing([point for point in points if point.get("kind") in COLOURS]))


if __name__ == "__main__":
    main()
