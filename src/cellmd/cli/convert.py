"""Convert a Gemma 4 checkpoint into one .cellmd file.

    cellmd convert --input models/gemma-4-E2B-it --output gemma-4-E2B-it.cellmd
    cellmd convert --input google/gemma-4-E2B-it --output gemma-4-E2B-it.cellmd     (fetched; needs cellmd[hub])

The input is a folder as Hugging Face has it (config.json, safetensors, tokenizer.json, chat template, generation and
processor configs) or a hub id. The file holds everything: tokenizer, template and configs too. It appears under its
name only when it is complete.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from cellmd.cli import options
from cellmd.cli.progress import ProgressBar
from cellmd.errors import ArgumentError

GROUP_SIZES = ("row", "32", "64", "128", "256")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, metavar="DIR", help="checkpoint folder or hub id")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .cellmd file to write")
    parser.add_argument(
        "--recipe",
        choices=("aggressive", "balanced", "quality", "qat", "float"),
        help="aggressive: every 2-D weight at INT4; balanced, quality: more bits where they buy most, about "
        "10 and 27 %% more bytes; qat: exact for checkpoints of quantisation-aware training; float: nothing quantised "
        "(default: aggressive)",
    )
    parser.add_argument(
        "--group-size",
        choices=GROUP_SIZES,
        help="columns that share a scale, for every quantised tensor (default: the recipe's own)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="choose codes for the inputs that each matrix gets: on the texts (.txt), sounds and pictures in a folder, "
        "or on 'default', those that come with cellmd; takes minutes to hours, keeps much more of the model",
    )
    parser.add_argument(
        "--budget",
        metavar="SIZE",
        help="size of the file, as 2.8GB or 2.6GiB, instead of a recipe: what each part of the model costs is "
        "measured on the calibration material, and bytes go where they buy most",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--copy-tokenizer", action="store_true", help="also write STEM.tokenizer.json beside the file")
    card = parser.add_argument_group("spellings of the source model card")
    card.add_argument("--gemma4-aggressive-int4", action="store_true", help="the same as --recipe aggressive")
    card.add_argument("--quantize-int4-symmetric", action="store_true", help="symmetric INT4, which every recipe is")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.calibrate is not None:  # before NumPy is loaded
        # Pieces of the material run on all cores at once; a BLAS with threads of its own would halve the speed.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import cellmd

    with ProgressBar("converting", visible=not args.quiet) as bar:
        report = cellmd.convert(
            args.input,
            args.output,
            recipe=_recipe(args),
            group_size=_group_size(args.group_size),
            threads=args.threads,
            copy_tokenizer=args.copy_tokenizer,
            progress=bar.reach,
            calibrate=args.calibrate,
            budget=_budget(args),
        )
    print(json.dumps(report.as_dict()) if args.json else report.table())
    return 0


def _recipe(args: argparse.Namespace) -> str:
    asks_int4 = args.gemma4_aggressive_int4 or args.quantize_int4_symmetric
    if asks_int4 and args.recipe == "float":
        raise ArgumentError("--recipe float quantises nothing; leave out the INT4 options or the recipe")
    return args.recipe or "aggressive"


def _budget(args: argparse.Namespace) -> int | None:
    """Bytes."""
    if args.budget is None:
        return None
    if args.recipe or args.group_size or args.gemma4_aggressive_int4:
        raise ArgumentError("--budget chooses codings itself; leave out the recipe and --group-size")
    if args.calibrate is None:
        raise ArgumentError("--budget is spent where measuring the model says: add --calibrate default or a folder")
    from cellmd.convert.budget import parse_size

    return parse_size(args.budget)


def _group_size(word: str | None) -> int | None:
    """None: the recipe's own; 0: one scale a row."""
    if word is None:
        return None
    return 0 if word == "row" else int(word)
