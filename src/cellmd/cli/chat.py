"""Talk with a model, turn by turn.

    cellmd chat model.cellmd --system "Answer in one sentence."

Lines that begin with a slash are commands:
  /image FILE, /audio FILE, /video FILE   attach a medium to the next message
  /reset                                  forget the conversation
  /help                                   this list
  /quit                                   leave (as end of input does)
Ctrl-C stops an answer; what was said so far stays in the conversation.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from cellmd.cli import answers, options
from cellmd.errors import CellmdError

MEDIA_COMMANDS = ("/image", "/audio", "/video")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the .cellmd file")
    options.add_sampling(parser, tokens=1024)
    options.add_machine(parser)
    parser.add_argument("--timings", action="store_true", help="print how long each stage of a turn took")


def run(args: argparse.Namespace) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  editing and history for input(), where the platform has it
    with options.load_model(args, args.file) as model:
        chat = model.chat(system=args.system)
        media: list[dict[str, str]] = []
        while (line := _read_line()) is not None:
            word, _, rest = line.partition(" ")
            if word in MEDIA_COMMANDS:
                media.extend(_medium(word, rest.strip()))
            elif word == "/reset":
                chat.reset()
                media = []
            elif word == "/quit":
                break
            elif word.startswith("/"):
                print((__doc__ or "").split("\n\n", 2)[2], file=sys.stderr)
            elif line:
                _answer(chat, [*media, {"type": "text", "text": line}], args)
                media = []
    return 0


def _read_line() -> str | None:
    """The next line of input, stripped; None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return None


def _medium(command: str, path: str) -> list[dict[str, str]]:
    if not Path(path).is_file():
        print(f"no such file: {path or '(none given)'}", file=sys.stderr)
        return []
    kind = command.lstrip("/")
    return [{"type": kind, kind: path}]


def _answer(chat: Any, content: list[dict[str, str]], args: argparse.Namespace) -> None:
    try:
        pieces = chat.stream(content, **options.sampling_arguments(args))
        answers.print_stream(pieces, as_json=False, show_timings=args.timings)
    except CellmdError as error:  # a broken picture ends the turn, not the conversation
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
