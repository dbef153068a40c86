"""Opening checkpoints: the forms a folder may have, the names a file may use, and what each defect is told."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cellmd.convert.checkpoint import Checkpoint, canonical_name
from cellmd.convert.hub import NEEDED_FILES
from cellmd.convert.tensor_map import check_tensors
from cellmd.errors import CheckpointError, UnsupportedModelError
from cellmd.quant.floats import bf16_to_f32
from checkpoints import DATA, SHAPES, make_checkpoint, write_json, write_safetensors

TEMPLATE = (DATA / "chat_template.jinja").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape_opens_and_fits_the_table(shape: str, tmp_path: Path) -> None:
    with Checkpoint.open(make_checkpoint(tmp_path / shape, shape=shape, unused_kv=True)) as checkpoint:
        shapes = {name: checkpoint.shape(name) for name in checkpoint.tensors}
        assert all(spec.shape == shapes[spec.name] for spec in check_tensors(checkpoint.config, shapes))
        assert set(checkpoint.assets) == {
            "tokenizer.json",
            "chat_template.jinja",
            "generation_config.json",
            "processor_config.json",
        }
        assert checkpoint.name == shape


def test_shards_hold_the_same_as_one_file(folder: Path, tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", n_shards=3)
    with Checkpoint.open(folder) as one, Checkpoint.open(sharded) as three:
        assert one.fingerprint() == three.fingerprint()
        assert set(one.tensors) == set(three.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(one.read_rows(name), three.read_rows(name))


def test_weights_come_by_their_bits_where_a_file_stores_them_as_they_are(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        for name in checkpoint.tensors:
            weights = checkpoint.read_weights(name)
            bits = weights.dtype == np.uint16
            assert bits == (checkpoint.dtype(name) == "bf16")
            np.testing.assert_array_equal(bf16_to_f32(weights) if bits else weights, checkpoint.read_rows(name))


def test_a_file_cut_short_while_it_is_read_is_named(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        last = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].tensor.offset)
        path = folder / "model.safetensors"
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
        with pytest.raises(CheckpointError, match=r"the file ends inside tensor"):
            checkpoint.read_weights(last)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.language_model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("language_model.model.layers.3.layer_scalar", "model.language_model.layers.3.layer_scalar"),
        ("language_model.layers.3.layer_scalar", "model.language_model.layers.3.layer_scalar"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.embed_tokens_per_layer.weight", "model.language_model.embed_tokens_per_layer.weight"),
        ("vision_tower.std_bias", "model.vision_tower.std_bias"),
        ("embed_audio.embedding_projection.weight", "model.embed_audio.embedding_projection.weight"),
        ("model.embed_vision.embedding_projection.weight", "model.embed_vision.embedding_projection.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("something.else", "something.else"),
    ],
)
def test_names_become_the_published_ones(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    assert canonical_name(canonical) == canonical


def test_two_tensors_of_one_role_are_refused(folder: Path) -> None:
    ones = np.ones(40, np.float32)
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": ones, "language_model.norm.weight": ones})
    with pytest.raises(CheckpointError, match="two tensors of one role"):
        Checkpoint.open(folder)


# ---- what is missing or broken --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "processor_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_json_file_is_named(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Checkpoint.open(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "x", n_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 weight files are missing: model-00002-of-00003"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"x": "../model.safetensors"}, "not the name of a file in this folder"),
        ({"x": "/etc/passwd"}, "not the name of a file in this folder"),
        ({"x": 3}, "not the name of a file in this folder"),
        ({"x": "model.safetensors"}, "'x' should be here"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_a_hostile_index_is_refused(weight_map: Any, words: str, folder: Path) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(folder)


def test_one_weight_file_of_another_name_is_found(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    Checkpoint.open(folder).close()
    shutil.copy(folder / "weights.safetensors", folder / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files and no model\.safetensors\.index\.json"):
        Checkpoint.open(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not read: save the model as safetensors"):
        Checkpoint.open(folder)


def test_config_errors_name_the_file(folder: Path) -> None:
    edit_json(folder / "config.json", text_config=None)
    with pytest.raises(CheckpointError, match=r"config.json: config key 'text_config' is missing"):
        Checkpoint.open(folder)
    edit_json(folder / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        Checkpoint.open(folder)


def test_a_quantised_checkpoint_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="already quantised"):
        Checkpoint.open(folder)


def test_a_file_instead_of_its_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="give the checkpoint's folder"):
        Checkpoint.open(folder / "model.safetensors")


# ---- files beside the weights ---------------------------------------------------------------------------------------


def test_the_template_may_lie_in_other_files(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    template = TEMPLATE.decode()
    for file, value in [
        ("tokenizer_config.json", template),
        ("tokenizer_config.json", [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]),
        ("tokenizer_config.json", [{"name": "only", "template": template}]),
        ("chat_template.json", template),
    ]:
        write_json(folder / file, {"chat_template": value})
        with Checkpoint.open(folder) as checkpoint:
            assert checkpoint.assets["chat_template.jinja"] == TEMPLATE
        (folder / file).unlink()
    with Checkpoint.open(folder) as checkpoint:
        assert "chat_template.jinja" not in checkpoint.assets
    write_json(folder / "tokenizer_config.json", {"chat_template": 3})
    with pytest.raises(CheckpointError, match="neither text nor a list"):
        Checkpoint.open(folder)


def test_older_processor_files_give_the_same_sections(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        newer = json.loads(checkpoint.assets["processor_config.json"])
    sections = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    write_json(folder / "preprocessor_config.json", {**sections["feature_extractor"], **sections["image_processor"]})
    write_json(folder / "video_preprocessor_config.json", sections["video_processor"])
    with Checkpoint.open(folder) as checkpoint:
        older = json.loads(checkpoint.assets["processor_config.json"])
    for section in ("feature_extractor", "image_processor", "video_processor"):
        assert older[section] == newer[section]


# ---- hub ------------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(source: str, allow_patterns: list[str]) -> str:
        asked.append((source, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with Checkpoint.open("someone/some-model") as checkpoint:
        assert checkpoint.name == "someone/some-model"
    assert asked == [("someone/some-model", NEEDED_FILES)]


def test_hub_trouble_is_told_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="/no/such/folder: no such folder"):
        Checkpoint.open("/no/such/folder")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"no such folder; to fetch it .* pip install 'cellmd\[hub\]'"):
        Checkpoint.open("someone/some-model")

    def unreachable(source: str, allow_patterns: list[str]) -> str:
        raise OSError("name resolution failed\nlong story")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=unreachable))
    with pytest.raises(CheckpointError, match=r"from the hub failed: name resolution failed$"):
        Checkpoint.open("someone/some-model")
