"""Opens a checkpoint: a folder in Hugging Face form, or a hub id. Tensors are read lazily, in blocks of rows.

    with Checkpoint.open("models/gemma-4-E2B-it") as checkpoint:
        checkpoint.config                                      # ModelConfig
        checkpoint.read_rows("model.language_model.embed_tokens.weight", 0, 256)   # float32 (256, D)

Tensor names are those of the published checkpoint whatever the source calls them (text-only models, other prefixes).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from cellmd.config import ModelConfig
from cellmd.convert.assets import find_assets, read_json
from cellmd.convert.gguf import GgufFile, published_name
from cellmd.convert.hub import fetch
from cellmd.convert.safetensors import SafetensorsFile, SourceDtype, StoredTensor
from cellmd.convert.tensor_map import OUTPUT_HEAD, expected_tensors
from cellmd.errors import ArgumentError, CheckpointError
from cellmd.quant.floats import from_stored

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DECODER_PARTS = re.compile(
    r"(embed_tokens|embed_tokens_per_layer|layers|norm|per_layer_model_projection|per_layer_projection_norm)\."
)
_TOWERS = re.compile(r"(language_model|vision_tower|audio_tower|embed_vision|embed_audio)\.")


def canonical_name(name: str) -> str:
    """The published name of a tensor: `model.` + `language_model.`, `vision_tower.`, ...; `lm_head.weight` as it is.

    Text-only checkpoints say `model.layers.0...`, bare modules `layers.0...` or `vision_tower...`, older ones
    `language_model.model.layers.0...`. A name of no known part is returned as it is.
    """
    bare = name.removeprefix("model.")
    bare = re.sub(r"^language_model\.(model\.|(?=lm_head\.))", "language_model.", bare)
    if bare.removeprefix("language_model.") == OUTPUT_HEAD:
        return OUTPUT_HEAD
    if _DECODER_PARTS.match(bare):
        return f"model.language_model.{bare}"
    return f"model.{bare}" if _TOWERS.match(bare) else name


@dataclass(frozen=True)
class Source:
    """A tensor in one of the checkpoint's files, under the name that file gives it."""

    file: SafetensorsFile | GgufFile
    stored_name: str

    @property
    def tensor(self) -> StoredTensor:
        return self.file.tensors[self.stored_name]


class Checkpoint:
    """An open checkpoint. `open` has checked the files; that the tensors are the right ones is `check`'s to say
    (`tensor_map.py`).

    name: the hub id, or the folder's own name.
    config_json: config.json as it is; config: what cellmd reads out of it.
    assets: the files beside the weights by their usual names (`assets.py`).
    """

    def __init__(self, folder: Path, name: str, gguf: Path | None = None) -> None:
        self.folder = folder
        self.name = name
        self._gguf = None if gguf is None else GgufFile(gguf)
        self.config_json: Mapping[str, Any] = self._gguf.config if self._gguf else read_json(folder / "config.json")
        try:
            self.config = ModelConfig.from_dict(self.config_json)
        except ArgumentError as error:
            raise CheckpointError(f"{gguf or folder / 'config.json'}: {error}") from error
        if self.config_json.get("quantization_config"):
            raise CheckpointError(f"{folder}: already quantised (quantization_config); convert the original checkpoint")
        self.assets = find_assets(folder)
        self._changed = {name: spec for name, spec in expected_tensors(self.config).items() if spec.transformed}
        self._files: list[SafetensorsFile] = []
        try:
            self.tensors = self._open_weights()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Open a folder, a .gguf file with tokenizer.json beside it (needs the extra `gguf`), or fetch a hub id
        (`google/gemma-4-E2B-it`; needs the extra `hub`) and open that.

        Raises CheckpointError for what is missing or broken, UnsupportedModelError for another kind of model.
        """
        path = Path(source)
        if path.is_dir():
            return cls(path, path.resolve().name)
        if path.suffix == ".gguf" and path.is_file():
            return cls(path.parent, path.stem, gguf=path)
        if path.exists():
            raise CheckpointError(f"{path} is a file; give the checkpoint's folder, the one with config.json in it")
        return cls(fetch(str(source)), str(source))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def dtype(self, name: str) -> SourceDtype:
        return self.tensors[name].tensor.dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].tensor.shape

    def n_bytes(self, name: str) -> int:
        return self.tensors[name].tensor.n_bytes

    def read_stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of a tensor as stored; bfloat16 as uint16 bits."""
        source = self.tensors[name]
        return source.file.read_stored(source.stored_name, start, stop)

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of a tensor as float32, the whole of it by default, as a file stores them (`TensorSpec`)."""
        stored = self.read_stored(name, start, stop)
        values = stored if stored.dtype == np.float32 else from_stored(stored, self.dtype(name))
        spec = self._changed.get(name)
        if spec is not None:
            values = (values + np.float32(spec.offset)) * np.float32(spec.factor)
        return np.asarray(values)  # arithmetic on an array of no dimensions gives a scalar

    def read_weights(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """As `read_rows`, but bfloat16 that is stored as it is comes by its bits, in uint16, for `encode_block`."""
        if self.dtype(name) == "bf16" and name not in self._changed:
            return self.read_stored(name, start, stop)
        return self.read_rows(name, start, stop)

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the table of tensors: says which model this is, without reading 10 GB."""
        table = {name: [self.dtype(name), list(self.shape(name))] for name in sorted(self.tensors)}
        text = json.dumps([self.config_json, table], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _open_weights(self) -> dict[str, Source]:
        if self._gguf is not None:
            return {published_name(name): Source(self._gguf, name) for name in self._gguf.tensors}
        by_file = self._weight_files()
        tensors: dict[str, Source] = {}
        for path, wanted in by_file.items():
            file = SafetensorsFile(path)
            self._files.append(file)
            for stored_name in file.tensors if wanted is None else wanted:
                if stored_name not in file.tensors:
                    raise CheckpointError(
                        f"{path}: tensor {stored_name!r} should be here by {INDEX} and is not; fetch both again"
                    )
                name = canonical_name(stored_name)
                if name in tensors:
                    raise CheckpointError(
                        f"{path}: {stored_name!r} and {tensors[name].stored_name!r} are two tensors of one role"
                    )
                tensors[name] = Source(file, stored_name)
        return tensors

    def _weight_files(self) -> dict[Path, list[str] | None]:
        """The weight files and the tensors to take from each; None takes all."""
        if (self.folder / INDEX).exists():
            return self._indexed_files()
        if (self.folder / WEIGHTS).exists():
            return {self.folder / WEIGHTS: None}
        found = sorted(self.folder.glob("*.safetensors"))
        if len(found) == 1:
            return {found[0]: None}
        if found:
            raise CheckpointError(f"{self.folder}: {len(found)} .safetensors files and no {INDEX} that joins them")
        other = next(
            (path.name for pattern in ("*.bin", "*.gguf", "*.pth") for path in self.folder.glob(pattern)), None
        )
        hint = f"; {other} is not read: save the model as safetensors" if other else ""
        raise CheckpointError(f"{self.folder}: no {WEIGHTS} and no {INDEX}{hint}")

    def _indexed_files(self) -> dict[Path, list[str] | None]:
        path = self.folder / INDEX
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path}: no weight_map in it")
        names: dict[Path, list[str]] = {}
        for tensor_name, file_name in weight_map.items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise CheckpointError(f"{path}: {str(file_name)[:80]!r} is not the name of a file in this folder")
            names.setdefault(self.folder / file_name, []).append(tensor_name)
        missing = sorted(file.name for file in names if not file.is_file())
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:3])}"
            )
        return {file: names[file] for file in sorted(names)}
