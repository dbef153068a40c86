"""Answer about one sound: features, encoder, prefill and decode, each timed.

    audio-direct --model model.cellmd --audio audio.wav --prompt "Transcribe this audio:" --tokens 100

The answer goes to stdout, the timings to stderr. A sound longer than 30 s is cut into pieces of 30 s.
"""

from __future__ import annotations

import argparse

from cellmd.cli import direct


def add_arguments(parser: argparse.ArgumentParser) -> None:
    direct.add_arguments(parser, "audio", prompt="Transcribe this audio:", tokens=256)


def run(args: argparse.Namespace) -> int:
    return direct.run(args, "audio")
