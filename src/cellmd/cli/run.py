"""Answer one prompt, about any mixture of text, pictures, sounds and films.

    cellmd run model.cellmd "What is said here?" --audio note.m4a
    cellmd run model.cellmd "Which of the two is older?" --image a.jpg --image b.png --tokens 60
    git diff | cellmd run model.cellmd - --system "Write a commit message for this change."

The answer goes to stdout as it is made, timings (with --timings) and reasoning to stderr.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cellmd.cli import answers, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the .cellmd file")
    parser.add_argument("prompt", metavar="PROMPT", help='the question; "-" reads it from standard input')
    options.add_media(parser)
    options.add_sampling(parser, tokens=512)
    options.add_machine(parser)
    parser.add_argument("--timings", action="store_true", help="print how long each stage took")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    messages = options.messages(args.prompt, args.media, args.system)
    with options.load_model(args, args.file) as model:
        pieces = model.stream(messages, **options.media_arguments(args), **options.sampling_arguments(args))
        answers.print_stream(pieces, as_json=args.json, show_timings=args.timings)
    return 0
