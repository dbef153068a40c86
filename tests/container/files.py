"""Small files for tests: of version 2 by the writer, of version 1 by a writer of the tests' own, and files put together
from a header and bytes, true or not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from cellmd.container import ContainerWriter, TensorDeclaration
from cellmd.container.layout import aligned
from cellmd.quant import Coding, encode_block

CONFIG = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": {"n": [1, 2.5]}}
ASSETS = {"tokenizer.json": b'{"vocab": []}' * 40, "chat_template.jinja": b"{{ x }}"}

TENSORS: dict[str, tuple[tuple[int, ...], Coding]] = {
    "model.language_model.layers.0.mlp.up_proj.weight": ((20, 40), Coding("i4", "tile16", 32, "i8")),
    "model.language_model.layers.0.mlp.down_proj.weight": ((3, 5), Coding("i8", "tile16", 0, "bf16")),
    "model.language_model.embed_tokens_per_layer.weight": ((6, 33), Coding("i4", "row", 32, "f16")),
    "model.language_model.norm.weight": ((7,), Coding("f16")),
    "model.vision_tower.position": ((2, 3, 4), Coding("bf16")),
    "model.audio_tower.input_max": ((), Coding("f32")),
}


def weights(name: str) -> np.ndarray:
    """The tensor `name` of TENSORS before it is encoded."""
    seed = list(TENSORS).index(name)
    return np.random.default_rng(seed).standard_normal(TENSORS[name][0]).astype(np.float32)


def write_v2(path: Path) -> Path:
    """A file with one tensor of each kind and two assets."""
    declarations = [TensorDeclaration(name, shape, coding) for name, (shape, coding) in TENSORS.items()]
    quality = {}
    with ContainerWriter(
        path, tensors=declarations, config=CONFIG, assets=ASSETS, provenance={"recipe": "test"}
    ) as writer:
        for name, (_, coding) in TENSORS.items():
            block = encode_block(weights(name), coding, name=name)
            writer.write(name, 0, block)
            quality[name] = block.error.as_json()
        writer.finish({"tensors": quality})
    return path


def split_v2(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A version 2 file -> its header document, and all from the first blob on."""
    (length,) = struct.unpack("<I", content[6:10])
    return json.loads(content[10 : 10 + length]), content[aligned(10 + length, 4096) :]


def join_v2(document: Any, blobs: bytes, *, version: int = 2, start: int = 4096) -> bytes:
    """The inverse, for any document or header bytes; the header is filled up with spaces to `start`."""
    header = document if isinstance(document, bytes) else json.dumps(document).encode()
    room = max(start, aligned(10 + len(header), 4096)) - 10
    return b"CELLM" + struct.pack("<BI", version, room) + header.ljust(room) + blobs


V1_TEXT_CONFIG = {"hidden_size": 8, "num_hidden_layers": 1}


def v1_matrices() -> dict[str, tuple[str, np.ndarray]]:
    """dtype and float32 weights of the tensors of `v1_file`, odd widths among them."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "model.language_model.layers.0.mlp.up_proj.weight": ("i4", normal(5, 7)),
        "model.language_model.layers.0.mlp.gate_proj.weight": ("i8", normal(3, 9)),
        "model.language_model.norm.weight": ("f16", normal(11)),
        "model.audio_tower.layers.0.input_max": ("f16", normal()),
    }


def v1_quantised(dtype: str, values: np.ndarray) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Stored bytes, f16 scales and codes of a matrix, as version 1 defines them."""
    top = 7 if dtype == "i4" else 127
    scales = (np.abs(values).max(axis=1) / top).astype(np.float16)
    codes = np.clip(np.rint(values / scales[:, None].astype(np.float32)), -top, top).astype(np.int64)
    if dtype == "i8":
        return codes.astype(np.int8).tobytes(), scales, codes
    stored = bytearray()
    for row in codes:
        nibbles = [int(code) + 8 for code in row] + [8] * (len(row) % 2)
        stored += bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return bytes(stored), scales, codes


def v1_document(**changes: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Header (offsets still 0) and blobs of a version 1 file."""
    entries, blobs = [], []

    def add(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> None:
        entries.append({"name": name, "dtype": dtype, "shape": list(shape), "offset_bytes": 0, "nbytes": len(content)})
        blobs.append(content)

    for name, (dtype, values) in v1_matrices().items():
        if dtype == "f16":
            add(name, dtype, values.shape, values.astype(np.float16).tobytes())
            continue
        stored, scales, _ = v1_quantised(dtype, values)
        add(name, dtype, values.shape, stored)
        add(f"{name}.qscale", "f16", scales.shape, scales.tobytes())
    document = {
        "model_type": "gemma4_text",
        "source_model_type": "gemma4",
        "vocab_size": 16,
        "hidden_dim": 8,
        "intermediate_size": 16,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "bos_token_id": 2,
        "eos_token_id": None,
        "source_architectures": ["Gemma4ForConditionalGeneration"],
        "source_text_config": V1_TEXT_CONFIG,
        "source_vision_config": {"hidden_size": 4},
        "source_projector_config": None,
        "tensors": entries,
        **changes,
    }
    return document, blobs


def join_v1(document: dict[str, Any], blobs: list[bytes], *, start: int = 2048) -> bytes:
    """A version 1 file: blobs 64-byte aligned from `start` on, a header that says where."""
    content = b""
    for entry, blob in zip(document["tensors"], blobs, strict=True):
        content = content.ljust(aligned(len(content), 64), b"\0")
        entry["offset_bytes"] = start + len(content)
        content += blob
    header = json.dumps(document).encode()
    assert 10 + len(header) <= start
    return (b"CELLM" + struct.pack("<BI", 1, len(header)) + header).ljust(start, b"\0") + content


def v1_file(**changes: Any) -> bytes:
    return join_v1(*v1_document(**changes))


def touch_everything(path: Path) -> None:
    """Open a file and use all of it, as a model would and `verify` does."""
    from cellmd.container import Container
    from cellmd.quant import decode

    with Container.open(path) as container:
        for name in container.tensors:
            decode(container.tensors[name])
        for name in container.assets:
            container.asset(name)
        container.sizes_by_component()
        container.verify()
