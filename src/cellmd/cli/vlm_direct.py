"""Answer about one picture: features, encoder, prefill and decode, each timed.

    vlm-direct --model model.cellmd --image image.jpg --prompt "Describe this image:"

The answer goes to stdout, the timings to stderr.
"""

from __future__ import annotations

import argparse

from cellmd.cli import direct


def add_arguments(parser: argparse.ArgumentParser) -> None:
    direct.add_arguments(parser, "image", prompt="Describe this image:", tokens=256)


def run(args: argparse.Namespace) -> int:
    return direct.run(args, "image")
