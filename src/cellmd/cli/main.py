"""Entry points: `cellmd COMMAND ...`, `audio-direct ...`, `vlm-direct ...`.

A command is a module of this folder with `add_arguments(parser)` and `run(args) -> int`. Only the module of the command
that was asked for is imported, so `cellmd --help` is immediate.

Exit codes: 0 done; 1 an error with a message on stderr; 2 a wrong command line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cellmd.errors import CellmdError

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Command(NamedTuple):
    module: str
    summary: str


COMMANDS = {
    "demo": Command("demo", "see it work with the small model that comes with it"),
    "convert": Command("convert", "convert a Gemma 4 checkpoint into one .cellmd file"),
    "run": Command("run", "answer one prompt about text, pictures, sounds and films"),
    "chat": Command("chat", "talk with a model, turn by turn"),
    "serve": Command("serve", "serve a model to OpenAI's clients, with a page to talk with it"),
    "transcribe": Command("transcribe", "write down what is said in recordings of any length"),
    "audio-direct": Command("audio_direct", "answer about one sound, with the timings of every stage"),
    "vlm-direct": Command("vlm_direct", "answer about one picture, with the timings of every stage"),
    "inspect": Command("inspect", "show what a .cellmd file holds"),
    "bench": Command("bench", "measure how fast a file runs here, against what the machine could do"),
    "eval": Command("eval", "measure how much of one model others keep: KL divergence, top-1, perplexity"),
    "verify": Command("verify", "check a .cellmd file's checksums, and its error against the source"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`cellmd COMMAND ...`: returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if not word.startswith("-")), None)
    if arguments and arguments[0] == name and name in COMMANDS:
        return _run_command(f"cellmd {name}", COMMANDS[name], arguments[1:])
    return _top_level(arguments)


def audio_direct() -> int:
    """The console script `audio-direct`."""
    return _run_command("audio-direct", COMMANDS["audio-direct"], sys.argv[1:])


def vlm_direct() -> int:
    """The console script `vlm-direct`."""
    return _run_command("vlm-direct", COMMANDS["vlm-direct"], sys.argv[1:])


def _top_level(arguments: list[str]) -> int:
    from cellmd import __version__

    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="cellmd",
        usage="cellmd COMMAND ...",
        description="Gemma 4 in one INT4 file: text, sound, pictures and films, on the machine in front of you.",
        epilog=f"commands:\n{listing}\n\n`cellmd COMMAND --help` says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cellmd {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    parser.parse_args(arguments or ["--help"])
    return EXIT_USAGE


def _run_command(prog: str, command: Command, arguments: Sequence[str]) -> int:
    module = importlib.import_module(f"cellmd.cli.{command.module}")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        code: int = module.run(args)
        sys.stdout.flush()
        return code
    except CellmdError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our answers went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_ERROR
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
