"""See cellmd work, with the small Gemma 4 that comes with it: no download, a few seconds.

    cellmd demo
    cellmd demo --file my.wav

Converts the bundled checkpoint, then asks it about a sound, a picture and a film and shows its answers beside the
truth. With --file it answers about a sound, picture or film of your own. The model is tiny: it knows drawn scenes and
simple English sentences, and little beyond (its model card: examples/demo_model/MODEL_CARD.md).
"""

from __future__ import annotations

import argparse
import json
import mimetypes
import sys
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from cellmd.cli import answers
from cellmd.errors import ArgumentError

_QUESTIONS = {
    "audio": "Transcribe this audio:",
    "image": "Describe this image.",
    "video": "Describe this video.",
}
_NEXT = """
The real model, Gemma 4 E2B: accept its licence at huggingface.co/google/gemma-4-E2B-it, then
    pip install huggingface_hub && cellmd convert --input google/gemma-4-E2B-it --output gemma-4-E2B-it.cellmd
    cellmd run gemma-4-E2B-it.cellmd "What is said here?" --audio note.m4a"""


class Exhibit(NamedTuple):
    """A medium, what to ask about it, and the right answer, if it is known."""

    kind: str
    path: Path
    question: str
    truth: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, metavar="FILE", help="a sound, picture or film of your own")
    parser.add_argument("--question", metavar="TEXT", help="what to ask about it (default: transcribe or describe)")
    parser.add_argument("--recipe", default="aggressive", help="how the model is converted (default: %(default)s)")
    parser.add_argument("--backend", default="auto", help="auto, cuda, cpu or reference (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    import cellmd

    own = None if args.file is None else _own(args.file, args.question)
    bundled = files("cellmd.demo")
    with (
        as_file(bundled / "checkpoint") as checkpoint,
        as_file(bundled / "media") as media,
        tempfile.TemporaryDirectory(prefix="cellmd-demo-") as folder,
    ):
        path = Path(folder) / "demo.cellmd"
        report = cellmd.convert(checkpoint, path, recipe=args.recipe)
        before = sum(report.original_bytes.values())
        print(
            f"converted the bundled checkpoint: {before / 1e6:.1f} MB -> {report.file_bytes / 1e6:.1f} MB "
            f"(recipe {report.recipe}) in {report.seconds:.1f} s"
        )
        began = time.perf_counter()
        with cellmd.load(path, backend=args.backend) as model:
            print(f"loaded on backend {model.backend} in {(time.perf_counter() - began) * 1e3:.0f} ms")
            for exhibit in [own] if own else _exhibits(media):
                _show(model, exhibit)
    print(_NEXT)
    return 0


def _exhibits(media: Path) -> list[Exhibit]:
    stated = json.loads((media / "truth.json").read_text(encoding="utf-8"))
    return [
        Exhibit(_kind(media / name), media / name, each["question"], each["answer"]) for name, each in stated.items()
    ]


def _own(path: Path, question: str | None) -> Exhibit:
    kind = _kind(path)
    return Exhibit(kind, path, question or _QUESTIONS[kind], None)


def _kind(path: Path) -> str:
    """What a file is, by its name: "audio", "image" or "video"."""
    kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    if kind not in _QUESTIONS:
        raise ArgumentError(f"{path}: its name does not say whether it is a sound, a picture or a film")
    return kind


def _show(model: Any, exhibit: Exhibit) -> None:
    print(f"\n{exhibit.path.name}\n  question  {exhibit.question}\n  answer    ", end="", flush=True)
    content = [{"type": exhibit.kind, exhibit.kind: exhibit.path}, {"type": "text", "text": exhibit.question}]
    pieces = model.stream([{"role": "user", "content": content}], max_tokens=64, temperature=0)
    last = answers.print_stream(pieces, as_json=False, show_timings=False)
    if exhibit.truth is not None:
        print(f"  truth     {exhibit.truth}")
    print(answers.timings_table(last.usage, last.timings))
    sys.stdout.flush()
