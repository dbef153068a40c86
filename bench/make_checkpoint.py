"""Makes a checkpoint of full size with random weights, to measure conversion and running without the real one.

    python bench/make_checkpoint.py --config config.json --out DIR [--seed 0] [--assets DIR]

Every tensor of the published checkpoint is there, by name, shape and bfloat16, in shards of at most 5 GB with an index:
for Gemma 4 E2B 2,011 tensors and 10.2 GB. Matrices are normal with a deviation of 0.02; clip ranges are finite.
Random numbers cost more time than the disk does, so matrices are cut out of one pool of them at random places.
`--assets` names a folder whose tokenizer, chat template, generation and processor configs are copied along.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from cellmd.config import ModelConfig
from cellmd.convert.hub import NEEDED_FILES
from cellmd.convert.tensor_map import TensorSpec, expected_tensors

SHARD_BYTES = 5_000_000_000
POOL_VALUES = 1 << 23
CHUNK_VALUES = 1 << 22
DEVIATION = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config.json that gives the shapes")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assets", type=Path, help="folder to copy the tokenizer and the other small files from")
    arguments = parser.parse_args()
    started = time.perf_counter()
    n_tensors, n_bytes = make(arguments.config, arguments.out, arguments.seed, arguments.assets)
    seconds = time.perf_counter() - started
    print(f"{arguments.out}: {n_tensors} tensors, {n_bytes / 1e9:.3f} GB in {seconds:.0f} s")


def make(
    config_path: Path, out: Path, seed: int, assets: Path | None, shard_bytes: int = SHARD_BYTES
) -> tuple[int, int]:
    """Write the folder; the number of tensors and their bytes."""
    out.mkdir(parents=True, exist_ok=True)
    if assets is not None:
        for pattern in NEEDED_FILES:
            for path in assets.glob(pattern):
                if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
                    shutil.copy(path, out / path.name)
    shutil.copy(config_path, out / "config.json")
    config = json.loads(config_path.read_text())
    specs = list(expected_tensors(ModelConfig.from_dict(config)).values())
    shards = split(specs, shard_bytes)
    rng = np.random.default_rng(seed)
    pool = bfloat16(rng.standard_normal(POOL_VALUES, dtype=np.float32) * np.float32(DEVIATION))
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(out / name, shard, pool, rng)
        weight_map |= {spec.name: name for spec in shard}
    n_bytes = sum(size(spec) for spec in specs)
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return len(specs), n_bytes


def size(spec: TensorSpec) -> int:
    return 2 * int(np.prod(spec.shape, dtype=np.int64))


def split(specs: list[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + size(spec) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += size(spec)
    return shards


def write_shard(path: Path, specs: list[TensorSpec], pool: np.ndarray, rng: np.random.Generator) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [at, at + size(spec)]}
        at += size(spec)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            if spec.role in ("matrix", "embedding", "per_layer_table", "position_table", "conv"):
                for left in range(size(spec) // 2, 0, -CHUNK_VALUES):
                    n = min(left, CHUNK_VALUES)
                    start = int(rng.integers(0, POOL_VALUES - n + 1))
                    file.write(pool[start : start + n].data)
            else:
                file.write(bfloat16(small_tensor(spec, rng)).tobytes())


def small_tensor(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    if spec.role == "clip":
        return np.asarray(-10.0 if spec.name.endswith("_min") else 10.0, np.float32)
    middle = 1.0 if spec.role in ("norm", "scalar") else 0.0
    return (middle + 0.05 * rng.standard_normal(spec.shape)).astype(np.float32)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


if __name__ == "__main__":
    main()
