"""What a benchmark says a file has to do at least."""

from __future__ import annotations

from pathlib import Path

from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.convert.convert import convert
from cellmd.runtime.benchmark import Work
from checkpoints import make_checkpoint


def test_work_counts_each_weight_once(tmp_path: Path) -> None:
    convert(make_checkpoint(tmp_path / "tiny"), tmp_path / "tiny.cellmd", recipe="float")
    with Container.open(tmp_path / "tiny.cellmd") as container:
        config = ModelConfig.from_dict(container.config).text
        work = Work.of(container.tensors, config)
        decoder = [
            tensor
            for name, tensor in container.tensors.items()
            if name.startswith("model.language_model.") and "embed_tokens_per_layer" not in name
        ]
    matrices = [tensor.shape for tensor in decoder if len(tensor.shape) == 2]
    assert work.decode_bytes == sum(tensor.n_bytes for tensor in decoder)
    assert work.prompt_macs + work.last_macs == sum(rows * columns for rows, columns in matrices)
    # By hand, layer by layer: a prompt token runs the layers before the last one that writes keys and values, and gives
    # that one its key and value.
    d_model, expected = config.d_model, 0
    last_writer = config.first_shared_layer - 1
    for layer in config.layers[:last_writer]:
        attention = 2 * config.n_heads + 2 * layer.n_kv_heads
        expected += d_model * (attention * layer.head_dim + 3 * layer.ffn_dim + 3 * config.ple_dim)
    last = config.layers[last_writer]
    expected += d_model * 2 * last.n_kv_heads * last.head_dim
    assert work.prompt_macs == expected
