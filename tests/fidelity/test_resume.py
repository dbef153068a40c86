"""An interrupted calibration goes on where it was, with the same outcome; a state that is of no use is not used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cellmd
from checkpoints import make_checkpoint
from gemma3_checkpoint import make_gemma3

WORDS = ("the old house stands by the river and nobody knows who built it " * 40).split()


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    (folder / "a.txt").write_text(" ".join(np.random.default_rng(0).permutation(WORDS)))
    noise = np.random.default_rng(1).integers(0, 255, (96, 144, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("resume") / "source", dtype="float32")


@pytest.fixture(scope="module")
def uninterrupted(source: Path, material: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("whole") / "x.cellmd"
    cellmd.convert(source, target, calibrate=material, threads=1)
    assert [path.name for path in target.parent.iterdir()] == ["x.cellmd"]
    return target.read_bytes()


def interrupt(source: Path, target: Path, material: Path, at: str, **options: object) -> None:
    def progress(done: int, total: int, name: str) -> None:
        if at in name:
            raise KilledError

    with pytest.raises(KilledError):
        cellmd.convert(source, target, calibrate=material, progress=progress, threads=1, **options)  # type: ignore[arg-type]


def finished(state: Path) -> int:
    return int(json.loads((state / "rounding" / "manifest.json").read_text())["finished"])


def test_threads_change_nothing(source: Path, material: Path, uninterrupted: bytes, tmp_path: Path) -> None:
    cellmd.convert(source, tmp_path / "x.cellmd", calibrate=material, threads=3)
    assert (tmp_path / "x.cellmd").read_bytes() == uninterrupted


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_it_goes_on_from_the_last_finished_layer(
    layer: int, source: Path, material: Path, uninterrupted: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, state = tmp_path / "x.cellmd", tmp_path / "x.cellmd.calibration"
    interrupt(source, target, material, f"language_model.layers.{layer}.self_attn.q_proj")
    assert finished(state) == layer + 1
    assert len(list(state.rglob("place-*.npz"))) == 1
    seen: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.WARNING):
        cellmd.convert(source, target, calibrate=material, threads=1, progress=lambda *step: seen.append(step))
    assert f"goes on behind layer {layer} of 6" in caplog.text
    assert target.read_bytes() == uninterrupted
    assert not state.exists()
    rounding = [step for step in seen if step[1] == seen[0][1]]
    assert rounding[-1][0] == rounding[-1][1]
    assert not any(f"language_model.layers.{earlier}.mlp" in step[2] for step in rounding for earlier in range(layer))


def test_interrupted_twice(source: Path, material: Path, uninterrupted: bytes, tmp_path: Path) -> None:
    target = tmp_path / "x.cellmd"
    for layer in (1, 4):
        interrupt(source, target, material, f"language_model.layers.{layer}.self_attn.q_proj")
    cellmd.convert(source, target, calibrate=material, threads=1)
    assert target.read_bytes() == uninterrupted


def test_killed_before_anything_was_finished(
    source: Path, material: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "x.cellmd"
    interrupt(source, target, material, "vision_tower")
    cellmd.convert(source, target, calibrate=material, threads=1)
    assert target.read_bytes() == uninterrupted


@pytest.mark.parametrize("damaged", ["rounded-0.npz", "rounded-2.npz", "place-2.npz", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_state_begins_anew(
    damaged: str, how: str, source: Path, material: Path, uninterrupted: bytes, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    target, state = tmp_path / "x.cellmd", tmp_path / "x.cellmd.calibration"
    interrupt(source, target, material, "language_model.layers.2.self_attn.q_proj")
    path = state / "rounding" / damaged
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(content if how == "flipped" else content[: len(content) * 2 // 3])
    with caplog.at_level(logging.WARNING):
        cellmd.convert(source, target, calibrate=material, threads=1)
    assert "goes on" not in caplog.text
    assert damaged == "manifest.json" or "damaged" in caplog.text
    assert target.read_bytes() == uninterrupted
    assert not state.exists()


def test_a_state_of_other_options_or_another_source_is_not_used(
    source: Path, material: Path, uninterrupted: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "x.cellmd"
    for other_source, options in (
        (source, {"recipe": "quality"}),
        (make_checkpoint(tmp_path / "other", dtype="float32", seed=9), {}),
    ):
        interrupt(other_source, target, material, "language_model.layers.2.self_attn.q_proj", **options)
        with caplog.at_level(logging.WARNING):
            cellmd.convert(source, target, calibrate=material, threads=1)
        assert "another conversion" in caplog.text
        assert target.read_bytes() == uninterrupted
        caplog.clear()


def test_a_budget_is_not_spent_anew(tmp_path: Path, material: Path) -> None:
    source = make_gemma3(tmp_path / "source")
    budget = int(cellmd.convert(source, tmp_path / "small.cellmd").file_bytes * 1.3)
    cellmd.convert(source, tmp_path / "whole.cellmd", calibrate=material, budget=budget, threads=1)
    target = tmp_path / "x.cellmd"
    interrupt(source, target, material, "language_model.layers.2.self_attn.q_proj.weight", budget=budget)
    seen: list[str] = []
    cellmd.convert(
        source, target, calibrate=material, budget=budget, threads=1, progress=lambda *step: seen.append(step[2])
    )
    assert "embedding and head" not in seen
    assert target.read_bytes() == (tmp_path / "whole.cellmd").read_bytes()
