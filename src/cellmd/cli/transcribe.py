"""Write down what is said in recordings of any length.

    cellmd transcribe meeting.m4a --model model.cellmd
    cellmd transcribe *.mp3 --model model.cellmd --format srt --output subtitles

Without --output the transcript goes to stdout. With it each recording gets a file in that folder; what is done already
is kept beside it while the work goes on, so that the same command line goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cellmd.cli import options
from cellmd.errors import ArgumentError, BackendError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="sounds or films")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="the .cellmd file")
    parser.add_argument("--format", choices=("txt", "srt", "vtt", "json"), default="txt", help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write STEM.FORMAT there")
    parser.add_argument("--language", metavar="NAME", help="spoken: a code such as de, or an English name")
    parser.add_argument("--translate", action="store_true", help="into English")
    parser.add_argument(
        "--at-once", type=int, default=4, metavar="N", help="pieces heard at once (default: %(default)s)"
    )
    options.add_machine(parser)


def run(args: argparse.Namespace) -> int:
    try:
        from cellmd.transcribe.formats import FORMATS
        from cellmd.transcribe.job import forget, transcribe_file
        from cellmd.transcribe.languages import language_name
        from cellmd.transcribe.recording import Task
    except ImportError as error:
        raise BackendError(f"transcribing needs {error.name}: pip install 'cellmd[transcribe]'") from error
    stems = [file.stem for file in args.files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if args.output is not None and twice is not None:
        raise ArgumentError(f"two recordings would be written to {twice}.{args.format}; give them one at a time")
    task = Task(translate=args.translate, language=language_name(args.language) if args.language else None)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    with options.load_model(args, args.model) as model:
        scheduler = model.scheduler(args.at_once)
        targets = [None if args.output is None else args.output / f"{file.stem}.{args.format}" for file in args.files]
        try:
            for file, target in zip(args.files, targets, strict=True):
                segments = transcribe_file(model, scheduler, file, task, target, args.at_once)
                text = FORMATS[args.format](segments)
                if target is None:
                    sys.stdout.write(text)
                    sys.stdout.flush()
        finally:
            scheduler.close()
        for target in targets:
            if target is not None:
                forget(target)
    return 0
