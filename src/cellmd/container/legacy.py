"""Version 1, the format of files that people already have: read, never written. See `docs/format.md`.

Its header has no checksums and no assets; a quantised tensor is two entries, NAME and NAME.qscale; the tokenizer is a
file beside it. It is mapped here to the header of version 2, so that nothing above knows the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellmd.container import document as doc
from cellmd.container.header import Blob, Header, TensorEntry, check_sizes
from cellmd.container.layout import BLOB_ALIGNMENT, LEGACY_VERSION, MAX_TENSORS
from cellmd.errors import HeaderError, LayoutError, TruncatedError, UnsupportedModelError
from cellmd.quant import Coding

TOKENIZER = "tokenizer.json"

_SCALES = ".qscale"
_CODINGS = {
    "f16": Coding("f16"),
    "i8": Coding("i8", "row", 0, "f16"),
    "i4": Coding("i4", "row", 0, "f16"),
}


def tokenizer_beside(path: Path) -> Path:
    """STEM.tokenizer.json beside STEM.cellmd."""
    return path.with_name(f"{path.stem}.{TOKENIZER}")


def read(document: doc.Object) -> Header:
    """A version 1 header from its parsed JSON. Raises HeaderError, LayoutError, UnsupportedModelError."""
    entries: dict[str, tuple[str, tuple[int, ...], Blob]] = {}
    for index, value in enumerate(doc.as_list(document.get("tensors"), "tensors", MAX_TENSORS)):
        name, entry = _entry(value, index)
        if name in entries:
            raise HeaderError(f"tensor {name!r} is listed twice")
        entries[name] = entry
    tensors = {}
    for name, (dtype, shape, data) in entries.items():
        if name.endswith(_SCALES):
            if name.removesuffix(_SCALES) not in entries:
                raise LayoutError(f"tensor {name!r} holds scales of a tensor that the file does not have")
            continue
        coding = _CODINGS[dtype]
        blobs = {"data": data}
        if coding.quantised:
            if len(shape) != 2:
                raise LayoutError(f"tensor {name!r} of dtype {dtype} must have 2 dimensions, found {list(shape)}")
            scales = entries.get(name + _SCALES)
            if scales is None or scales[0] != "f16":
                raise LayoutError(f"tensor {name!r} of dtype {dtype} has no f16 scales {name + _SCALES!r}")
            blobs["scales"] = scales[2]
        check_sizes(name, shape, coding, blobs)
        tensors[name] = TensorEntry(name, shape, coding, blobs)
    return Header(LEGACY_VERSION, _config(document, tensors), tensors, {}, {}, {})


def _entry(value: object, index: int) -> tuple[str, tuple[str, tuple[int, ...], Blob]]:
    found = doc.with_keys(value, f"tensor number {index}", ("name", "dtype", "shape", "offset_bytes", "nbytes"))
    name = doc.as_name(found["name"], f"the name of tensor number {index}")
    where = f"tensor {name!r}"
    dtype = doc.as_text(found["dtype"], f"the dtype of {where}")
    if dtype not in _CODINGS:
        raise HeaderError(f"the dtype of {where} is {doc.shown(dtype)}; this release reads {', '.join(_CODINGS)}")
    blob = Blob(
        offset=doc.as_count(found["offset_bytes"], f"the offset_bytes of {where}"),
        nbytes=doc.as_count(found["nbytes"], f"the nbytes of {where}"),
        sha256=None,
    )
    return name, (dtype, doc.as_shape(found["shape"], f"the shape of {where}"), blob)


def _config(document: doc.Object, tensors: dict[str, TensorEntry]) -> dict[str, Any]:
    """The checkpoint's config.json as far as version 1 keeps it."""
    text = document.get("source_text_config")
    if text is None:
        raise UnsupportedModelError(
            "the file's header has no source_text_config, without which its layers are unknown; convert the checkpoint"
        )
    architectures = document.get("source_architectures") or ["Gemma4ForConditionalGeneration"]
    config: dict[str, Any] = {
        "architectures": [
            doc.as_text(name, "source_architectures") for name in doc.as_list(architectures, "source_architectures", 16)
        ],
        "model_type": "gemma4",
        "text_config": doc.free_object(text, "source_text_config"),
    }
    for kind in ("vision", "audio"):
        source = document.get(f"source_{kind}_config")
        if source is not None:
            config[f"{kind}_config"] = doc.free_object(source, f"source_{kind}_config")
    if "audio_config" not in config and any(name.startswith("model.audio_tower.") for name in tensors):
        # Writers of version 1 may leave it out; the published defaults are those of every E-series model.
        config["audio_config"] = {"model_type": "gemma4_audio"}
    return config


def check_ranges(header: Header, header_end: int, file_size: int) -> None:
    """Raises LayoutError for ranges that overlap, or start unaligned or within the header; TruncatedError for ranges
    beyond the end. Version 1 does not forbid holes."""
    end, before = header_end, "the header"
    for what, blob in sorted(header.blobs(), key=lambda item: item[1].offset):
        if blob.offset < end:
            raise LayoutError(f"{what} at byte {blob.offset} overlaps {before}, which ends at {end}")
        if blob.offset % BLOB_ALIGNMENT:
            raise LayoutError(f"{what} starts at byte {blob.offset}, no multiple of {BLOB_ALIGNMENT}")
        end, before = blob.offset + blob.nbytes, what
        if end > file_size:
            raise TruncatedError(f"{what} ends at byte {end}, the file has {file_size}; copy or convert it again")
