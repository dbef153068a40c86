"""Version 1 files, made by the tests' own writer of the documented format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellmd.container import Container
from cellmd.errors import ContainerError
from cellmd.quant import Coding, codes_of, decode
from container.files import V1_TEXT_CONFIG, join_v1, v1_document, v1_file, v1_matrices, v1_quantised


def saved(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "gemma-4-E2B-it-int4.v2.cellmd"
    path.write_bytes(content)
    return path


def test_tensors_decode_as_version_1_defines_them(tmp_path: Path) -> None:
    with Container.open(saved(tmp_path, v1_file())) as container:
        assert container.version == 1
        assert list(container.tensors) == list(v1_matrices())  # scales are no tensors of their own
        for name, (dtype, values) in v1_matrices().items():
            packed = container.tensors[name]
            assert packed.shape == values.shape
            if dtype == "f16":
                assert packed.coding == Coding("f16")
                assert np.array_equal(decode(packed), values.astype(np.float16))
                continue
            _, scales, codes = v1_quantised(dtype, values)
            assert packed.coding == Coding(dtype, "row", 0, "f16")
            assert np.array_equal(codes_of(packed, slice(0, len(codes))), codes)
            assert np.array_equal(decode(packed), codes.astype(np.float32) * scales.astype(np.float32)[:, None])
        assert container.verify() == 0


def test_the_configuration_is_put_together_again(tmp_path: Path) -> None:
    with Container.open(saved(tmp_path, v1_file(source_audio_config={"hidden_size": 3}))) as container:
        assert container.config == {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": "gemma4",
            "text_config": V1_TEXT_CONFIG,
            "vision_config": {"hidden_size": 4},
            "audio_config": {"hidden_size": 3},
        }
        assert container.provenance == {}
        assert container.quality == {}


def test_an_audio_tower_without_its_configuration_has_the_published_one(tmp_path: Path) -> None:
    with Container.open(saved(tmp_path, v1_file())) as container:
        assert container.config["audio_config"] == {"model_type": "gemma4_audio"}
    document, blobs = v1_document()
    del document["tensors"][-1], blobs[-1]  # the only tensor of the tower
    with Container.open(saved(tmp_path, join_v1(document, blobs))) as container:
        assert "audio_config" not in container.config


def test_the_tokenizer_lies_beside_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, v1_file())
    with Container.open(path) as container:
        assert container.assets == ()
        with pytest.raises(ContainerError, match=r"has no tokenizer\.json; it holds no assets"):
            container.asset("tokenizer.json")
    (tmp_path / "gemma-4-E2B-it-int4.v2.tokenizer.json").write_bytes(b"{}")
    with Container.open(path) as container:
        assert container.assets == ("tokenizer.json",)
        assert container.asset("tokenizer.json") == b"{}"


def test_flat_keys_of_later_writers_do_no_harm(tmp_path: Path) -> None:
    with Container.open(saved(tmp_path, v1_file(something_new={"a": [1]}))) as container:
        assert len(container.tensors) == len(v1_matrices())
