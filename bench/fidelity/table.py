"""The table of docs/quantisation.md: every recipe, data-free and calibrated, and budgets, on two texts.

    python bench/fidelity/table.py /tmp/fidelity/model/g270.gguf /tmp/fidelity/novel.txt /tmp/fidelity/manual.txt \
        --work /tmp/fidelity/files --near /tmp/fidelity/near --peer /tmp/fidelity/model/peer-q4_0.gguf --results

Converts what is not yet in the work folder (an interrupted calibration goes on) and compares all files with the float
model, at the same positions in float32 arithmetic and with the native kernels, which quantise activations to 8 bits; a
file of the peer (`peer.py` makes it) by its dequantised weights. Scores are kept in the work folder, too: what has them
is not run again. A JSON line for each file; with --results they are what bench/fidelity/results.jsonl holds, and the
curve is drawn anew.
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import curve
import gguf

import cellmd
from cellmd.cli.progress import ProgressBar
from cellmd.container import Container
from cellmd.evaluation.evaluate import Wanted, evaluate

RESULTS = Path(__file__).parent / "results.jsonl"
RECIPES = ("aggressive", "balanced", "quality")


def bits_of(path: Path) -> tuple[float, int, int]:
    """Bits of a weight over all 2-D tensors with their scales, how many weights those are, bytes of the rest."""
    with Container.open(path) as container:
        matrices = [each for each in container.tensors.values() if len(each.shape) == 2]
        n_bytes, n_weights = sum(each.n_bytes for each in matrices), sum(math.prod(each.shape) for each in matrices)
        return 8 * n_bytes / n_weights, n_weights, container.file_bytes - n_bytes


def made(source: Path, path: Path, **options: Any) -> Path:
    if not path.exists():
        cellmd.convert(source, path, **options)
    return path


def peer_bits(path: Path) -> float:
    """Bits of a weight over all 2-D tensors of a GGUF file."""
    matrices = [tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) == 2]
    return float(8 * sum(each.n_bytes for each in matrices) / sum(each.n_elements for each in matrices))


def files(args: argparse.Namespace) -> dict[str, tuple[Path, str]]:
    """By name in the table: the file and the kind of point."""
    source, work = args.source, args.work
    found = {}
    if args.peer is not None:
        found["Q4_0 throughout"] = made(args.peer, work / "peer.cellmd", recipe="float"), "peer"
    for recipe in RECIPES:
        found[recipe] = made(source, work / f"{recipe}.cellmd", recipe=recipe), "data-free"
    _, n_weights, rest = bits_of(work / "aggressive.cellmd")
    for recipe in RECIPES:
        path = made(source, work / f"{recipe}-default.cellmd", recipe=recipe, calibrate="default")
        found[f"{recipe}, calibrated"] = path, "calibrated"
    for bits in args.budgets:
        budget = int(rest + bits * n_weights / 8)
        path = made(source, work / f"budget-{bits}.cellmd", budget=budget, calibrate="default")
        found[f"budget {bits} bits"] = path, "calibrated"
    if args.near is not None:
        path = made(source, work / "aggressive-near.cellmd", recipe="aggressive", calibrate=args.near)
        found["aggressive, near text"] = path, "calibrated"
    return found


def scores(runs: list[tuple[str, Path]], against: Path, wanted: Wanted) -> dict[tuple[str, Path], dict[str, Any]]:
    """Of pairs of a backend and a file, all at once: the yardstick runs over each piece only once."""
    kept = {run: run[1].with_suffix(f".{run[0]}-{wanted.most_tokens}.json") for run in runs}
    missing = [run for run in runs if not kept[run].exists()]
    if missing:
        with ExitStack() as stack, ProgressBar("comparing", unit="piece") as bar:
            yardstick = stack.enter_context(cellmd.load(against, backend="reference"))
            models = [stack.enter_context(cellmd.load(path, backend=backend)) for backend, path in missing]
            for run, found in zip(missing, evaluate(models, yardstick, wanted, bar.reach), strict=True):
                kept[run].write_text(json.dumps(found.as_dict()["modalities"]["text"]))
    return {run: json.loads(path.read_text()) for run, path in kept.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True, help="folder for the files")
    parser.add_argument("--near", type=Path, help="material near the texts to calibrate the smallest recipe on as well")
    parser.add_argument("--peer", type=Path, help="GGUF file of the peer, the tokenizer beside it")
    parser.add_argument("--budgets", type=float, nargs="*", default=[4.55, 5.0], help="bits a weight, calibrated")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--results", action="store_true", help="write results.jsonl and draw the curve")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    against = made(args.source, args.work / "float.cellmd", recipe="float")
    named = files(args)
    runs = [("reference", path) for path, _ in named.values()]
    runs += [("cpu", path) for path, kind in named.values() if kind != "peer"]
    found = scores(runs, against, Wanted(args.texts, most_tokens=args.tokens))
    points = []
    for name, (path, kind) in named.items():
        plain, kernels = found["reference", path], found.get(("cpu", path))
        points.append(
            {
                "name": name,
                "kind": kind,
                "bits": round(peer_bits(args.peer) if kind == "peer" else bits_of(path)[0], 3),
                "kl": plain["kl"]["mean"],
                "interval": plain["kl"]["interval"],
                "p99": plain["kl"]["p99"],
                "top1": plain["top1"]["mean"],
                "perplexity": plain["perplexity"],
                "perplexity_against": plain["perplexity_against"],
                "positions": plain["positions"],
                "kl_with_kernels": kernels and kernels["kl"]["mean"],
                "top1_with_kernels": kernels and kernels["top1"]["mean"],
            }
        )
        print(json.dumps(points[-1]), flush=True)
    if args.results:
        RESULTS.write_text("".join(json.dumps(point) + "\n" for point in points))
        curve.main()


if __name__ == "__main__":
    main()
