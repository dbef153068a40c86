"""Makes a .cellmd file of full size with random codes, without a checkpoint: seconds instead of minutes.

    python bench/make_file.py --config config.json --out e2b.cellmd [--recipe aggressive] [--assets DIR] [--seed 0]

Every tensor that the configuration implies is there as the recipe stores it. Codes are random bytes, all of equal
likelihood, with scales that make weights deviate by about 0.02; what is not quantised is as in `make_checkpoint.py`.
`--assets` names a folder with tokenizer, chat template, generation and processor configs, which commands other than
`bench` on text need.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from cellmd.config import ModelConfig
from cellmd.container.writer import ContainerWriter, TensorDeclaration
from cellmd.convert.assets import find_assets, stored_assets
from cellmd.convert.recipe import find_recipe
from cellmd.convert.tensor_map import TensorSpec, expected_tensors
from cellmd.quant import Coding, EncodedBlock, encode_block, sizes
from cellmd.quant.error import ErrorStats
from cellmd.quant.floats import to_stored
from make_checkpoint import DEVIATION, small_tensor

POOL_BYTES = 1 << 26
ROWS_AT_ONCE = 1 << 14
SPREAD = {"i4": 4.6, "i8": 73.9}
"""Standard deviation of codes of equal likelihood."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config.json that gives the shapes")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--recipe", default="aggressive")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assets", type=Path, help="folder to take the tokenizer and the other small files from")
    arguments = parser.parse_args()
    began = time.perf_counter()
    n_bytes = make(arguments.config, arguments.out, arguments.recipe, arguments.seed, arguments.assets)
    print(f"{arguments.out}: {n_bytes / 1e9:.3f} GB in {time.perf_counter() - began:.0f} s")


def make(config_path: Path, out: Path, recipe: str, seed: int, assets: Path | None) -> int:
    """Write the file; its bytes."""
    config = json.loads(config_path.read_text())
    specs = [spec for spec in expected_tensors(ModelConfig.from_dict(config)).values() if not spec.unused]
    chosen = find_recipe(recipe)
    codings = {spec.name: chosen.coding(spec, "bf16") for spec in specs}
    rng = np.random.default_rng(seed)
    pool = np.frombuffer(rng.bytes(POOL_BYTES), np.uint8)
    with ContainerWriter(
        out,
        tensors=[TensorDeclaration(spec.name, spec.shape, codings[spec.name]) for spec in specs],
        config=config,
        assets=None if assets is None else stored_assets(find_assets(assets)),
    ) as writer:
        for spec in specs:
            coding = codings[spec.name]
            if not coding.quantised:
                writer.write(spec.name, 0, encode_block(values_of(spec, rng), coding))
                continue
            for start in range(0, spec.shape[0], ROWS_AT_ONCE):
                n_rows = min(ROWS_AT_ONCE, spec.shape[0] - start)
                writer.write(spec.name, start, random_block((n_rows, spec.shape[1]), coding, pool, rng))
        writer.finish()
        return writer.n_bytes


def values_of(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    if spec.role in ("matrix", "embedding", "per_layer_table", "position_table", "conv"):
        return rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(DEVIATION)
    return small_tensor(spec, rng)


def random_block(shape: tuple[int, int], coding: Coding, pool: np.ndarray, rng: np.random.Generator) -> EncodedBlock:
    """Rows of a quantised tensor, its codes cut out of the pool at a random place."""
    n_bytes = sizes(shape, coding)
    start = int(rng.integers(0, POOL_BYTES // 2))
    data = np.resize(pool[start:], n_bytes.data)
    scale = DEVIATION / SPREAD[coding.dtype]
    if coding.scale_dtype == "i8":
        scales = rng.integers(64, 128, n_bytes.scales).astype(np.int8)
        return EncodedBlock(data, scales, np.full(n_bytes.row_factors // 4, scale / 96, np.float32), ErrorStats())
    assert coding.scale_dtype is not None
    width = 4 if coding.scale_dtype == "f32" else 2
    values = scale * rng.uniform(0.7, 1.3, n_bytes.scales // width).astype(np.float32)
    return EncodedBlock(data, to_stored(values, coding.scale_dtype), None, ErrorStats())


if __name__ == "__main__":
    main()
