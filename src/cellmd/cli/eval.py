"""Measure how much of one model others keep: KL divergence, top-1 agreement and perplexity, with 95 % intervals.

    cellmd eval int4.cellmd --against float.cellmd --text novel.txt --text manual.txt
    cellmd eval a.cellmd b.cellmd --against models/gemma-4-E2B-it --text novel.txt --sounds clips/ --pictures photos/
    cellmd eval int4.cellmd --against float.cellmd --text novel.txt --sensitivity

The yardstick is another .cellmd file or a checkpoint folder, which is converted without quantising for the occasion.
Text is compared after every token. About each sound and picture a question is asked, and models are compared after
every token of the yardstick's answer; where STEM.txt beside a sound holds the words, word error rates are given too.
With --sensitivity it says what each part of a file costs: each kind of matrix, in each third of the depth, is put alone
into the place of the yardstick's, on a few pieces of what is given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmd.cli import options
from cellmd.cli.progress import ProgressBar

if TYPE_CHECKING:
    from cellmd.api import Model
    from cellmd.evaluation.evaluate import Evaluation, Wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the .cellmd files to measure")
    parser.add_argument(
        "--against", required=True, type=Path, metavar="MODEL", help="the yardstick: file or checkpoint"
    )
    parser.add_argument("--text", action="append", type=Path, metavar="FILE", help="a text file; repeatable")
    parser.add_argument("--sounds", type=Path, metavar="FOLDER", help="sounds to ask about")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures to ask about")
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: transcribe it, describe it)")
    parser.add_argument("--piece", type=int, default=512, metavar="N", help="tokens of a piece of text (default: 512)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="most tokens of a text (default: 8192)")
    parser.add_argument("--answer", type=int, default=48, metavar="N", help="most tokens of an answer (default: 48)")
    parser.add_argument(
        "--sensitivity", action="store_true", help="what each part of a file costs, with the rest the yardstick's"
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="that the files run on (default: the best)")
    parser.add_argument(
        "--against-backend", default="auto", metavar="NAME", help="that the yardstick runs on (default: the best)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    options.add_kv_cache(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    import cellmd
    from cellmd.errors import ArgumentError
    from cellmd.evaluation.evaluate import Wanted, evaluate

    for name in ("piece", "tokens", "answer"):
        if getattr(args, name) < 2:
            raise ArgumentError(f"--{name} must be at least 2, found {getattr(args, name)}")
    wanted = Wanted(args.text or (), args.sounds, args.pictures, args.prompt, args.piece, args.tokens, args.answer)
    with ExitStack() as stack:
        bar = stack.enter_context(ProgressBar("comparing", visible=not args.quiet, unit="piece"))
        yardstick = stack.enter_context(_as_file(args.against))
        against = stack.enter_context(cellmd.load(yardstick, backend=args.against_backend, threads=args.threads))
        if args.sensitivity:
            _print_sensitivity(args, against, wanted, bar)
            return 0
        models = [
            stack.enter_context(cellmd.load(path, backend=args.backend, threads=args.threads, kv_cache=args.kv_cache))
            for path in args.files
        ]
        evaluations = evaluate(models, against, wanted, bar.reach, args.threads)
    if args.json:
        facts = {"against": str(args.against), "files": [evaluation.as_dict() for evaluation in evaluations]}
        print(json.dumps(facts))
    else:
        print(_table(evaluations))
    return 0


def _print_sensitivity(args: argparse.Namespace, against: Model, wanted: Wanted, bar: ProgressBar) -> None:
    from cellmd.evaluation.sensitivity import sensitivity

    found = {path: sensitivity(path, against, wanted, bar.reach, args.threads) for path in args.files}
    if args.json:
        files = [{"file": str(path), "groups": [each.as_dict() for each in costs]} for path, costs in found.items()]
        print(json.dumps({"against": str(args.against), "files": files}))
        return
    for path, costs in found.items():
        print(f"{path.name[:33]:34}{'tensors':>8}{'bits':>7}{'KL alone':>10}")
        for each in costs:
            group, kl = each.cost.group, each.cost.divergence
            figure = "unknown" if kl is None else f"{kl:.4f}"
            print(f"{group.name:34}{len(group.tensors):>8}{each.bits:>7.2f}{figure:>10}")


@contextmanager
def _as_file(model: Path) -> Iterator[Path]:
    """A .cellmd file of the model, for the time being if it is a checkpoint."""
    if model.is_file() and model.suffix != ".gguf":
        yield model
        return
    import tempfile

    import cellmd

    with tempfile.TemporaryDirectory(prefix="cellmd-eval-") as folder:
        target = Path(folder) / "against.cellmd"
        cellmd.convert(str(model), target, recipe="float")
        yield target


def _table(evaluations: Sequence[Evaluation]) -> str:
    lines = [
        f"{'file':28}{'MB':>8}  {'on':9}{'tokens':>7}{'KL':>9}{'95 %':>17}{'p99':>8}{'top-1 %':>9}"
        f"{'95 %':>13}{'perplexity':>12}{'against':>12}"
    ]
    for evaluation in evaluations:
        for modality, summary in evaluation.modalities().items():
            low, high = summary.divergence_interval
            agree_low, agree_high = (100 * bound for bound in summary.agreement_interval)
            lines.append(
                f"{evaluation.path.name[:27]:28}{evaluation.file_bytes / 1e6:8.1f}  {modality:9}"
                f"{summary.n_positions:>7}{summary.divergence:9.4f}{f'{low:.4f}..{high:.4f}':>17}"
                f"{summary.divergence_percentiles[99]:8.3f}{100 * summary.agreement:9.2f}"
                f"{f'{agree_low:.1f}..{agree_high:.1f}':>13}{summary.perplexity:12.5g}{summary.perplexity_against:12.5g}"
            )
        lines += _word_errors(evaluation)
    return "\n".join(lines)


def _word_errors(evaluation: Any) -> list[str]:
    if not evaluation.words:
        return []
    rate, rate_against = (
        100 * wrong / evaluation.words for wrong in (evaluation.words_wrong, evaluation.words_wrong_against)
    )
    return [f"  word error rate {rate:.1f} %, the yardstick's {rate_against:.1f} %, of {evaluation.words} words"]
