"""bench/make_file.py: what it writes is a file like any other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import cellmd
from cellmd.container import Container
from cellmd.quant.decode import decode
from checkpoints import checkpoint_config, make_checkpoint, write_json

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    spec = importlib.util.spec_from_file_location("make_file", BENCH / "make_file.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", ["aggressive", "qat", "balanced"])
def test_it_loads_and_answers(script: ModuleType, tmp_path: Path, recipe: str) -> None:
    assets = make_checkpoint(tmp_path / "assets")
    write_json(tmp_path / "config.json", checkpoint_config())
    path = tmp_path / "random.cellmd"
    assert script.make(tmp_path / "config.json", path, recipe, 0, assets) == path.stat().st_size
    with cellmd.load(path, backend="reference") as model:
        assert model.generate("a b", max_tokens=3, temperature=0).usage.completion_tokens == 3
    with Container.open(path) as container:
        values = decode(container.tensors["model.language_model.layers.0.mlp.up_proj.weight"])
    assert 0.015 < values.std() < 0.025
    assert np.unique(values).size > 50
