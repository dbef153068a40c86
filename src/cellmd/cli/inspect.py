"""Show what a .cellmd file holds: its model, sizes by component, and with --tensors every tensor.

    cellmd inspect model.cellmd
    cellmd inspect model.cellmd --tensors

Only the header is read, so this takes no time for a file of any size. `cellmd verify` reads it all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cellmd.cli import options

_TITLES = {
    "text": "text",
    "per_layer": "  of which per-layer embeddings",
    "vision": "vision",
    "audio": "audio",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the .cellmd file")
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its coding and size")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from cellmd.container import Container

    with Container.open(args.file) as container:
        facts = _facts(container)
        if args.tensors:
            facts["tensors"] = _tensors(container)
    print(json.dumps(facts) if args.json else _text(facts))
    return 0


def _facts(container: Any) -> dict[str, Any]:
    architectures = container.config.get("architectures")
    return {
        "file": str(container.path),
        "version": container.version,
        "file_bytes": container.file_bytes,
        "architecture": architectures[0] if architectures else container.config.get("model_type"),
        "provenance": dict(container.provenance),
        "assets": list(container.assets),
        "components": {
            key: {"tensors": size.n_tensors, "parameters": size.n_numbers, "bytes": size.n_bytes}
            for key, size in container.sizes_by_component().items()
            if size.n_tensors
        },
    }


def _tensors(container: Any) -> list[dict[str, Any]]:
    errors = container.quality.get("tensors", {})
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": tensor.coding.dtype,
            "layout": tensor.coding.layout,
            "group_size": tensor.coding.group_size,
            "scale_dtype": tensor.coding.scale_dtype,
            "bytes": tensor.n_bytes,
            "error": errors.get(name),
        }
        for name, tensor in container.tensors.items()
    ]


def _text(facts: dict[str, Any]) -> str:
    provenance = facts["provenance"]
    n_bytes = facts["file_bytes"]
    lines = [
        f"{facts['file']}: version {facts['version']}, {n_bytes:,} bytes = {n_bytes / 2**30:.4f} GiB",
        f"  architecture  {facts['architecture']}",
        *(f"  {key:<13} {value}" for key, value in provenance.items() if value is not None),
        f"  holds         {', '.join(facts['assets']) or 'no other files'}",
        "",
        f"{'component':32}{'tensors':>9}{'parameters':>16}{'MB':>11}{'bits':>7}",
    ]
    for key, size in facts["components"].items():
        bits = 8 * size["bytes"] / size["parameters"]
        lines.append(
            f"{_TITLES[key]:32}{size['tensors']:>9}{size['parameters']:>16,}{size['bytes'] / 1e6:>11,.1f}{bits:>7.2f}"
        )
    tensors = facts.get("tensors", [])
    if tensors:
        lines += ["", f"{'coding':22}{'kB':>12}{'SNR dB':>9}  {'shape':20} tensor"]
        lines += [_tensor_line(tensor) for tensor in tensors]
    return "\n".join(lines)


def _tensor_line(tensor: dict[str, Any]) -> str:
    coding = tensor["dtype"]
    if tensor["scale_dtype"]:
        coding += f" {tensor['layout']} g{tensor['group_size'] or 'row'} {tensor['scale_dtype']}"
    snr_db = (tensor["error"] or {}).get("snr_db")
    error = "" if snr_db is None else f"{snr_db:.2f}"
    shape = " x ".join(map(str, tensor["shape"])) or "scalar"
    return f"{coding:22}{tensor['bytes'] / 1e3:>12,.1f}{error:>9}  {shape:20} {tensor['name']}"
