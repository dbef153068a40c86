"""Conversion as a whole: what the file holds, that it is the same every time, that failures leave nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.convert import plan
from cellmd.convert.assets import stored_assets
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.convert import convert
from cellmd.convert.recipe import find_recipe
from cellmd.convert.tensor_map import expected_tensors
from cellmd.errors import ArgumentError, CellmdError, CheckpointError, ContainerError, UnsupportedModelError
from cellmd.quant import codes_of, compare, decode, encode, scales_of
from checkpoints import (
    ASSET_FILES,
    SHAPES,
    checkpoint_config,
    make_checkpoint,
    random_tensor,
    write_json,
    write_weights,
)

TINY = checkpoint_config("tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows, so that small tensors have several."""
    monkeypatch.setattr(plan, "BLOCK_WEIGHTS", 64)


def tensors_of(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a configuration, to be changed by a test before they are written."""
    rng = np.random.default_rng(seed)
    specs = expected_tensors(ModelConfig.from_dict(config)).values()
    return {spec.name: random_tensor(spec, rng) for spec in specs if not spec.unused}


# ---- what the file holds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.usefixtures("small_blocks")
def test_float_keeps_every_bit(shape: str, dtype: str, tmp_path: Path, out: Path) -> None:
    folder = make_checkpoint(tmp_path / shape, shape=shape, dtype=dtype, unused_kv=True, n_shards=2)
    convert(folder, out / "x.cellmd", recipe="float")
    with Checkpoint.open(folder) as checkpoint, Container.open(out / "x.cellmd") as container:
        stored = [spec for spec in expected_tensors(checkpoint.config).values() if not spec.unused]
        assert list(container.tensors) == [spec.name for spec in stored]
        for spec in stored:
            packed = container.tensors[spec.name]
            assert packed.shape == spec.shape
            assert packed.data.tobytes() == checkpoint.read_stored(spec.name).tobytes()
        assert container.config == json.loads((folder / "config.json").read_text())
        assert ModelConfig.from_dict(container.config) == checkpoint.config
        assert {name: container.asset(name) for name in container.assets} == stored_assets(checkpoint.assets)
        container.verify()


@pytest.mark.parametrize("group_size", [None, 0, 32])
@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.usefixtures("small_blocks")
def test_aggressive_holds_the_encoding_of_each_tensor(
    shape: str, group_size: int | None, tmp_path: Path, out: Path
) -> None:
    """Blocks and threads leave no trace: each tensor is as if it had been encoded whole."""
    folder = make_checkpoint(tmp_path / shape, shape=shape, unused_kv=True)
    report = convert(folder, out / "x.cellmd", group_size=group_size)
    reported = {tensor.name: tensor for tensor in report.tensors}
    with Checkpoint.open(folder) as checkpoint, Container.open(out / "x.cellmd") as container:
        for name, packed in container.tensors.items():
            spec = expected_tensors(checkpoint.config)[name]
            source = checkpoint.read_rows(name)
            coding = find_recipe("aggressive").coding(spec, "bf16", group_size)
            assert packed.coding == coding
            np.testing.assert_array_equal(decode(packed), decode(encode(name, source, coding)))
            assert reported[name].stored_bytes == packed.n_bytes
            if coding.quantised:
                assert reported[name].error.as_json() == pytest.approx(compare(packed, source).as_json(), rel=1e-3)
                assert container.quality["tensors"][name] == reported[name].error.as_json()
            else:
                assert name not in container.quality["tensors"]
        container.verify()


def test_weights_lie_within_half_a_step_of_their_codes(folder: Path, out: Path) -> None:
    convert(folder, out / "x.cellmd")
    with Checkpoint.open(folder) as checkpoint, Container.open(out / "x.cellmd") as container:
        quantised = [packed for packed in container.tensors.values() if packed.coding.quantised]
        assert quantised
        for packed in quantised:
            n_rows, n_columns = packed.shape
            rows = slice(0, n_rows)
            source, codes = checkpoint.read_rows(packed.name), codes_of(packed, rows)
            steps = np.repeat(scales_of(packed, rows), packed.coding.group_size, axis=1)[:, :n_columns]
            inside = (codes > -8) & (codes < 7)  # the outermost codes also stand for what lies beyond them
            error = np.abs(source - codes * steps)
            assert (error[inside] <= np.abs(steps[inside]) * np.float32(0.5 + 1e-5)).all()


def test_numbers_that_float16_cannot_hold_keep_their_dtype(folder: Path, out: Path) -> None:
    tensors = tensors_of(TINY)
    norm, scalar = "model.language_model.norm.weight", "model.language_model.layers.0.layer_scalar"
    limited = "model.audio_tower.layers.0.self_attn.q_proj.input_max"
    unlimited = "model.audio_tower.layers.0.self_attn.q_proj.output_max"
    tensors[norm][3] = 1e30
    tensors[limited] = np.asarray(1e10, np.float32)
    tensors[unlimited] = np.asarray(np.inf, np.float32)
    write_weights(folder, tensors)
    convert(folder, out / "x.cellmd")
    with Checkpoint.open(folder) as checkpoint, Container.open(out / "x.cellmd") as container:
        assert [container.tensors[name].coding.dtype for name in (norm, limited, unlimited, scalar)] == [
            "bf16",
            "bf16",
            "f16",
            "f16",
        ]
        for name in (norm, limited, unlimited):
            np.testing.assert_array_equal(decode(container.tensors[name]), checkpoint.read_rows(name))


def test_provenance_says_what_was_done_but_not_where(folder: Path, out: Path) -> None:
    convert(folder, out / "x.cellmd", group_size=64)
    with Container.open(out / "x.cellmd") as container:
        assert container.provenance["recipe"] == "aggressive"
        assert container.provenance["group_size"] == 64
        assert container.provenance["source"] == "tiny"
        assert container.provenance["tool"].startswith("cellmd ")
        assert str(folder.parent) not in json.dumps(container.provenance)


def test_the_tokenizer_beside_the_file(folder: Path, out: Path) -> None:
    report = convert(folder, out / "a.b-int4-v2.cellmd", copy_tokenizer=True)
    assert report.tokenizer_path == out / "a.b-int4-v2.tokenizer.json"
    assert report.tokenizer_path.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["a.b-int4-v2.cellmd", "a.b-int4-v2.tokenizer.json"]


# ---- the same every time --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_the_same_input_gives_the_same_bytes(folder: Path, out: Path, tmp_path: Path) -> None:
    for name, threads in (("one", 1), ("five", 5), ("again", 5)):
        convert(folder, out / name, threads=threads)
    shutil.copytree(folder, tmp_path / "elsewhere" / "tiny")
    convert(tmp_path / "elsewhere" / "tiny", out / "elsewhere")
    sharded = make_checkpoint(tmp_path / "sharded" / "tiny", n_shards=3, unused_kv=False)
    convert(sharded, out / "sharded")
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(contents) == 5
    assert len(set(contents.values())) == 1


def test_an_existing_file_is_replaced(folder: Path, out: Path) -> None:
    (out / "x.cellmd").write_bytes(b"old")
    convert(folder, out / "x.cellmd")
    Container.open(out / "x.cellmd").close()


def test_progress_reaches_the_end(folder: Path, out: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    convert(folder, out / "x.cellmd", progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    with Checkpoint.open(folder) as checkpoint:
        total = sum(checkpoint.n_bytes(name) for name in checkpoint.tensors)
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1] == total
    assert {call[2] for call in calls} == set(tensors_of(TINY))


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, out: Path) -> None:
    """A table of 100 MB goes through in blocks. Each of two threads holds a block of 2^19 numbers in bfloat16 (1 MiB),
    float32 (2 MiB), as codes and packed (0.8 MiB), with the encoder's chunks beside them."""
    changes = {"text_config": {"vocab_size_per_layer_input": 16_384, "hidden_size_per_layer_input": 512}}
    folder = make_checkpoint(tmp_path / "large", shape="text_only", config_overrides=changes)
    assert (folder / "model.safetensors").stat().st_size > 100e6
    tracemalloc.start()
    try:
        convert(folder, out / "x.cellmd", threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20


# ---- failures leave nothing behind ----------------------------------------------------------------------------------


def refuses(kind: type[CellmdError], words: str, folder: Path, out: Path, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        convert(folder, out / "x.cellmd", **options)
    assert list(out.iterdir()) == []


def without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[name]

    return change


def with_value(name: str, value: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model.language_model.norm.weight"), r"missing: model\.language_model\.norm\.weight"),
        (without("model.vision_tower.encoder.layers.1.mlp.up_proj.input_max"), "missing: .*input_max"),
        (with_value("model.language_model.norm.weight", np.ones(41)), r"another shape.*\[41\] instead of \[40\]"),
        (with_value("model.language_model.layers.0.router.proj.weight", np.ones((2, 2))), "no part of the model"),
        (with_value("model.audio_tower.output_proj.weight", np.ones((41, 36))), "audio-to-text alignment"),
        (with_value("model.language_model.norm.weight", np.full(40, np.nan)), r"norm\.weight' holds NaN"),
        (with_value("model.embed_vision.embedding_projection.weight", np.full((40, 24), np.inf)), "infinite"),
    ],
)
def test_a_wrong_checkpoint_is_refused(
    change: Callable[[dict[str, np.ndarray]], None], words: str, folder: Path, out: Path
) -> None:
    tensors = tensors_of(TINY)
    change(tensors)
    write_weights(folder, tensors)
    refuses(CheckpointError, words, folder, out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config": {"enable_moe_block": True}}, "mixture of experts"),
        ({"text_config": {"attention_k_eq_v": True}}, "attention_k_eq_v"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForConditionalGeneration"),
    ],
)
def test_a_model_that_is_not_supported_is_refused(changes: dict[str, Any], words: str, folder: Path, out: Path) -> None:
    write_json(folder / "config.json", checkpoint_config("tiny", changes))
    refuses(UnsupportedModelError, words, folder, out)


def test_wrong_options_are_refused(folder: Path, out: Path) -> None:
    refuses(ArgumentError, "no recipe 'best'", folder, out, recipe="best")
    refuses(ArgumentError, "group size 48", folder, out, group_size=48)
    refuses(ArgumentError, "threads must be at least 1", folder, out, threads=0)


def test_wrong_targets_are_refused(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="is a folder"):
        convert(folder, out)
    with pytest.raises(ArgumentError, match="no such folder to write"):
        convert(folder, out / "missing" / "x.cellmd")
    (folder / "dangling").symlink_to(folder / "nowhere")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ArgumentError, match="belongs to the checkpoint"):
        convert(folder, folder / "model.safetensors")
    (out / "link").symlink_to(folder / "model.safetensors")
    with pytest.raises(ArgumentError, match="belongs to the checkpoint"):
        convert(folder, out / "link")
    assert (folder / "model.safetensors").read_bytes() == before
    (out / "link").unlink()
    full = shutil.disk_usage(out)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    refuses(ContainerError, r"takes 0\.00 GB, its disk has 0\.00 GB left", folder, out)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_no_file(error: type[BaseException], folder: Path, out: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done > total // 2:
            raise error

    (out / "x.cellmd").write_bytes(b"old")
    with pytest.raises(error):
        convert(folder, out / "x.cellmd", progress=stop)
    assert [path.name for path in out.iterdir()] == ["x.cellmd"]
    assert (out / "x.cellmd").read_bytes() == b"old"


def test_a_killed_conversion_leaves_no_file_under_the_name(folder: Path, out: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from cellmd.convert.convert import convert\n"
        "def stop(done, total, name):\n"
        "    if done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert(sys.argv[1], sys.argv[2], progress=stop)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script, folder, out / "x.cellmd"], check=False)
    assert finished.returncode == -signal.SIGKILL
    assert not (out / "x.cellmd").exists()


# ---- the report -----------------------------------------------------------------------------------------------------


def test_the_report_adds_up(tmp_path: Path, out: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", unused_kv=True)
    report = convert(folder, out / "x.cellmd")
    figures = json.loads(json.dumps(report.as_dict()))
    sizes = figures["sizes"]
    weights = (folder / "model.safetensors").stat().st_size
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little") + 8
    assert sizes["all"]["original_bytes"] == weights - header
    for key in ("original_bytes", "stored_bytes"):
        assert sizes["all"][key] == sum(sizes[part][key] for part in ("text", "vision", "audio"))
        assert 0 < sizes["per_layer_embeddings"][key] < sizes["text"][key]
    assert figures["file_bytes"] == (out / "x.cellmd").stat().st_size > sizes["all"]["stored_bytes"]
    assert figures["tensors_dropped"] == 6
    errors = figures["errors"]
    assert errors["all"]["tensors"] == sum(errors[part]["tensors"] for part in ("text", "vision", "audio"))
    assert all(15 < errors[part]["lowest_db"] <= errors[part]["median_db"] < 30 for part in errors)
    assert figures["worst"][0]["snr_db"] == pytest.approx(errors["all"]["lowest_db"], abs=1e-3)
    table = report.table()
    for words in ("of which per-layer embeddings", "vision", "audio", "GiB", "SNR dB", "6 tensors that the model"):
        assert words in table


def test_the_report_of_a_conversion_that_loses_nothing(folder: Path, out: Path) -> None:
    report = convert(folder, out / "x.cellmd", recipe="float")
    assert report.as_dict()["errors"] == {}
    assert report.as_dict()["sizes"]["all"]["ratio"] == 1.0
    assert "SNR" not in report.table()


# ---- the reference implementation agrees on what a checkpoint is ----------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_transformers_loads_and_saves_the_same_checkpoints(shape: str, tmp_path: Path, out: Path) -> None:
    """It finds every tensor it wants in ours and no other; what it saves in shards converts to the same tensors."""
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4ForConditionalGeneration

    folder = make_checkpoint(tmp_path / shape, shape=shape)
    kind = Gemma4ForCausalLM if shape == "text_only" else Gemma4ForConditionalGeneration
    model, info = kind.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values())
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    for name in ASSET_FILES:
        shutil.copy(folder / name, tmp_path / "saved" / name)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    convert(folder, out / "ours.cellmd", recipe="float")
    convert(tmp_path / "saved", out / "saved.cellmd", recipe="float")
    with Container.open(out / "ours.cellmd") as ours, Container.open(out / "saved.cellmd") as saved:
        assert list(ours.tensors) == list(saved.tensors)
        for name, packed in ours.tensors.items():
            assert packed.data.tobytes() == saved.tensors[name].data.tobytes()
        assert ModelConfig.from_dict(ours.config) == ModelConfig.from_dict(saved.config)


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_transformers_reads_the_same_values(dtype: str, tmp_path: Path) -> None:
    from transformers import Gemma4ForConditionalGeneration

    folder = make_checkpoint(tmp_path / "x", dtype=dtype)
    state = Gemma4ForConditionalGeneration.from_pretrained(folder, dtype=dtype).state_dict()
    with Checkpoint.open(folder) as checkpoint:
        for name in checkpoint.tensors:
            np.testing.assert_array_equal(checkpoint.read_rows(name), state[name].float().numpy())
