"""bench/make_checkpoint.py: the folder it writes is a checkpoint like any other, only larger."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.tensor_map import check_tensors, expected_tensors
from checkpoints import checkpoint_config, make_checkpoint, write_json


def load_script() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_opens_and_has_every_tensor(tmp_path: Path) -> None:
    assets = make_checkpoint(tmp_path / "assets")
    write_json(tmp_path / "config.json", checkpoint_config())
    out = tmp_path / "out"
    n_tensors, n_bytes = load_script().make(tmp_path / "config.json", out, 0, assets, shard_bytes=200_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    with Checkpoint.open(out) as checkpoint:
        shapes = {name: checkpoint.shape(name) for name in checkpoint.tensors}
        assert len(shapes) == n_tensors == len(expected_tensors(checkpoint.config))
        assert sum(checkpoint.n_bytes(name) for name in shapes) == n_bytes == index["metadata"]["total_size"]
        for spec in check_tensors(checkpoint.config, shapes):
            values = checkpoint.read_rows(spec.name)
            assert np.isfinite(values).all()
            if spec.role == "matrix":
                assert 0.015 < values.std() < 0.025
        assert "processor_config.json" in checkpoint.assets


def test_the_seed_decides(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", checkpoint_config("text_only"))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        load_script().make(tmp_path / "config.json", tmp_path / name, seed, None)
    a, b, c = ((tmp_path / name / "model-00001-of-00001.safetensors").read_bytes() for name in "abc")
    assert a == b != c
