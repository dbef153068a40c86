"""What audio-direct and vlm-direct share: one medium, one prompt, the answer, the timings of every stage."""

from __future__ import annotations

import argparse
from pathlib import Path

from cellmd.cli import answers, options


def add_arguments(parser: argparse.ArgumentParser, kind: str, prompt: str, tokens: int) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="the .cellmd file")
    parser.add_argument(f"--{kind}", dest="medium", type=Path, required=True, metavar="FILE", help=f"the {kind} file")
    parser.add_argument("--prompt", default=prompt, metavar="TEXT", help="default: %(default)s")
    if kind == "image":
        parser.add_argument(
            "--image-tokens",
            type=int,
            choices=(70, 140, 280, 560, 1120),
            help="soft tokens the picture may take (default: the file's)",
        )
    options.add_sampling(parser, tokens=tokens)
    options.add_machine(parser)
    options.add_json(parser)


def run(args: argparse.Namespace, kind: str) -> int:
    medium = [{"type": kind, kind: str(args.medium)}]
    messages = options.messages(args.prompt, medium, args.system)
    with options.load_model(args, args.model) as model:
        pieces = model.stream(
            messages, image_tokens=getattr(args, "image_tokens", None), **options.sampling_arguments(args)
        )
        answers.print_stream(pieces, as_json=args.json, show_timings=True)
    return 0
