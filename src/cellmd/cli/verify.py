"""Check a .cellmd file: every checksum, every scale; with --source the error of every tensor.

    cellmd verify model.cellmd
    cellmd verify model.cellmd --source models/gemma-4-E2B-it

Exit code 0 if the file is whole, 1 with the reason on stderr if it is not. A version 1 file has no checksums; its
ranges and scales are checked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cellmd.cli import options
from cellmd.cli.progress import ProgressBar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the .cellmd file")
    parser.add_argument("--source", metavar="DIR", help="the checkpoint it was made from: a folder or a hub id")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from cellmd.container import Container

    with Container.open(args.file) as container:
        with ProgressBar("checksums", container.file_bytes, visible=not args.quiet) as bar:
            n_checksums = container.verify(bar.advance)
        n_tensors = len(container.tensors)
        errors = _errors(container, args.source, visible=not args.quiet) if args.source else {}
    if args.json:
        facts = {"file": str(args.file), "checksums": n_checksums, "tensors": n_tensors}
        if args.source:
            facts["errors"] = {name: error.as_json() for name, error in errors.items()}
        print(json.dumps(facts))
        return 0
    for name, error in sorted(errors.items(), key=lambda item: item[1].snr_db):
        snr_db = "exact" if error.error_energy == 0 else f"{error.snr_db:.2f} dB"
        print(f"{snr_db:>12}  max {error.max_abs:<12.5g} rms {error.rms:<12.5g} {name}")
    print(f"{args.file}: whole; {n_tensors} tensors, {n_checksums} checksums match")
    return 0


def _errors(container: Any, source: str, *, visible: bool) -> dict[str, Any]:
    from cellmd.convert.checkpoint import Checkpoint
    from cellmd.convert.verify import compare_with_source

    with Checkpoint.open(source) as checkpoint, ProgressBar("comparing", container.file_bytes, visible=visible) as bar:
        return compare_with_source(container, checkpoint, bar.advance)
