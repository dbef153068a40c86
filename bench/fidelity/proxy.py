"""How well the estimates that a budget is spent by agree with measuring: one tensor at a time, finer codings, the sum.

    python bench/fidelity/proxy.py /tmp/fidelity/model/g270.gguf texts/ [--layers 0 4 8 12 16]

`calibration/spending.py` measures a group of tensors once, at its smallest coding. It estimates a tensor's part of it,
and what a finer coding leaves of it, by the error of outputs. Here both are measured too. One JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellmd.calibration.material import Calibration
from cellmd.calibration.sensitivity import Group, Sensitivity, few, groups_of, layer_of
from cellmd.calibration.spending import RoundedValues, errors_of
from cellmd.calibration.streams import SourceValues, unread_tensors
from cellmd.convert.budget import codings_from
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import plan_conversion
from cellmd.convert.recipe import find_recipe
from cellmd.processors.prompt import Processor


def agreement(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Of estimated and measured numbers: rank correlation, and how far apart they are as factors."""
    estimated, measured = (np.array(column) for column in zip(*pairs, strict=True))
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (estimated, measured)]
    factors = np.abs(np.log(estimated / measured))
    return {
        "n": len(pairs),
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
        "median_factor": math.exp(float(np.median(factors))),
        "p90_factor": math.exp(float(np.quantile(factors, 0.9))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("material", help="folder, or default")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 4, 8, 12, 16], help="whose tensors to measure")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="finer codings of each Nth group alone")
    parser.add_argument("--prompts", type=int, metavar="N", help="at most so many (default: what a budget measures on)")
    args = parser.parse_args()
    with Checkpoint.open(args.source) as checkpoint, ThreadPoolExecutor(os.cpu_count()) as pool:
        plan = plan_conversion(checkpoint, find_recipe("aggressive"), None)
        planned = {each.spec.name: each for each in plan if each.coding.quantised}
        codings = {name: each.coding for name, each in planned.items()}
        source = SourceValues(checkpoint)
        rounded = RoundedValues(source, codings)
        processor = Processor.from_assets(checkpoint.assets, checkpoint.config)
        prompts = few(Calibration.find(args.material).prompts(processor, checkpoint))[: args.prompts]
        sensitivity = Sensitivity(source, rounded, checkpoint.config, unread_tensors(plan), prompts, pool)
        importance = sensitivity.importance

        def cost(group: Group) -> float:
            return sensitivity.measure([group])[0].divergence or math.nan

        groups = groups_of(checkpoint.config, planned)
        errors = {name: errors_of(checkpoint, each, importance.get(name)) for name, each in planned.items()}
        whole = {group.name: cost(group) for group in groups}
        by_tensor, by_coding = [], []
        for group in groups:
            total = sum(errors[name][0] for name in group.tensors)
            for name in group.tensors:
                if layer_of(name) in args.layers:
                    measured = cost(replace(group, tensors=(name,)))
                    by_tensor.append((whole[group.name] * errors[name][0] / total, measured))
        for at, coding in enumerate(codings_from(codings[groups[0].tensors[0]])):
            if at:
                rounded.codings = {name: codings_from(each)[at] for name, each in codings.items()}
                for group in groups[:: args.every]:
                    left = sum(errors[name][at] for name in group.tensors) / sum(errors[n][0] for n in group.tensors)
                    by_coding.append((str(coding), whole[group.name] * left, cost(group)))
        rounded.codings = codings
        everything = cost(Group("everything", "everything", tuple(planned)))
    facts = {
        "groups": whole,
        "sum": sum(whole.values()),
        "everything": everything,
        "tensors": agreement(by_tensor),
        "codings": {
            coding: agreement([(e, m) for c, e, m in by_coding if c == coding])
            for coding in {c for c, _, _ in by_coding}
        },
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
