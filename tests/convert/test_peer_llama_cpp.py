"""bench/peer_llama_cpp.py: the peer's file has the same decoder, and ratios are those of a round."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

from cellmd.config import ModelConfig
from checkpoints import checkpoint_config

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 32,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "peer_llama_cpp.py"
    spec = importlib.util.spec_from_file_location("peer_llama_cpp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_peers_file_is_the_same_decoder_in_q4_0(script: ModuleType, tmp_path: Path) -> None:
    config = ModelConfig.from_dict(checkpoint_config(overrides={"text_config": WIDTHS}))
    script.write_gguf(tmp_path / "peer.gguf", config)
    reader = gguf.GGUFReader(tmp_path / "peer.gguf")
    text, tensors = config.text, {tensor.name: tensor for tensor in reader.tensors}

    def fact(key: str) -> object:
        return reader.get_field(f"gemma4.{key}").contents()

    assert reader.get_field("general.architecture").contents() == "gemma4"
    assert fact("block_count") == text.n_layers
    assert fact("feed_forward_length") == [layer.ffn_dim for layer in text.layers]
    assert fact("attention.shared_kv_layers") == text.n_layers - text.first_shared_layer
    assert fact("attention.sliding_window_pattern") == [layer.window > 0 for layer in text.layers]
    for name in ("token_embd", "per_layer_token_embd", "per_layer_model_proj", "blk.0.attn_k", "blk.0.ffn_down"):
        assert tensors[f"{name}.weight"].tensor_type == script.Q4_0
    assert tensors["token_embd.weight"].shape.tolist() == [text.d_model, text.vocab_size]
    assert f"blk.{text.n_layers - 1}.attn_k.weight" not in tensors
    assert not list(tmp_path.glob("*.part"))
    weights = gguf.quants.dequantize(tensors["blk.0.attn_q.weight"].data, script.Q4_0)
    assert weights.shape == (text.n_heads * text.layers[0].head_dim, text.d_model)
    assert 0.5 < np.std(weights) / 0.02 < 2
    assert (np.array(tensors["output_norm.weight"].data) == 1).all()
    full = next(layer for layer in text.layers if not layer.window)
    turning = np.array(tensors["rope_freqs.weight"].data) == 1
    assert turning.tolist() == [i < full.rotary_dim // 2 for i in range(full.head_dim // 2)]


def test_ratios_are_taken_within_a_round(script: ModuleType) -> None:
    rounds = [{"decode at 8": {"cellmd": 10.0 * n, "peer": 5.0 * n}} for n in (1, 8, 3)]
    assert script.compare(rounds) == {"decode at 8": {"cellmd": 30.0, "peer": 15.0, "ratio": 2.0, "wanted": 1.25}}
    assert "decode at 8" in script.table(script.compare(rounds))
