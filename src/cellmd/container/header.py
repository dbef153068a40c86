"""What the header of a file says, and whether it can be true of that file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cellmd.container import document as doc
from cellmd.container.layout import (
    BLOB_ALIGNMENT,
    DATA_ALIGNMENT,
    MAX_ASSET_BYTES,
    MAX_ASSETS,
    MAX_TENSORS,
    SHA256_HEX_DIGITS,
    VERSION,
    aligned,
)
from cellmd.errors import HeaderError, LayoutError, TruncatedError
from cellmd.quant import Coding, coding_problem, sizes

PARTS = ("data", "scales", "row_factors")
"""The blobs of a tensor, as they are called in the header and in `quant.Sizes`, in the order in which they lie."""

COMPRESSIONS = ("none", "zlib")

_ASSET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(rf"[0-9a-f]{{{SHA256_HEX_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class Blob:
    """A range of bytes; sha256 in hexadecimal, None in version 1, which has no checksums."""

    offset: int
    nbytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """blobs: by part; a tensor has those that `quant.sizes` gives bytes."""

    name: str
    shape: tuple[int, ...]
    coding: Coding
    blobs: dict[str, Blob]


@dataclass(frozen=True, slots=True)
class AssetEntry:
    """size: bytes of the content, before compression."""

    name: str
    blob: Blob
    size: int
    compression: str


@dataclass(frozen=True, slots=True)
class Header:
    """config, provenance and quality are JSON objects as they were written."""

    version: int
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    assets: dict[str, AssetEntry]
    provenance: dict[str, Any]
    quality: dict[str, Any]

    def blobs(self) -> Iterator[tuple[str, Blob]]:
        """Every blob with what it is, for messages."""
        for asset in self.assets.values():
            yield f"asset {asset.name!r}", asset.blob
        for tensor in self.tensors.values():
            for part, blob in tensor.blobs.items():
                yield f"{part} of tensor {tensor.name!r}", blob


def read(document: doc.Object) -> Header:
    """A version 2 header from its parsed JSON. Raises HeaderError, and LayoutError where bytes and shape disagree."""
    doc.with_keys(document, "the header", ("format", "config", "tensors", "assets", "provenance", "quality"))
    if document["format"] != "cellmd":
        raise HeaderError(f"the header's format must be 'cellmd', found {doc.shown(document['format'])}")
    tensors: dict[str, TensorEntry] = {}
    for index, value in enumerate(doc.as_list(document["tensors"], "tensors", MAX_TENSORS)):
        tensor = _tensor(value, index)
        if tensor.name in tensors:
            raise HeaderError(f"tensor {tensor.name!r} is listed twice")
        tensors[tensor.name] = tensor
    assets = doc.as_object(document["assets"], "assets")
    if len(assets) > MAX_ASSETS:
        raise HeaderError(f"the header lists {len(assets)} assets, more than the {MAX_ASSETS} allowed")
    return Header(
        version=VERSION,
        config=doc.free_object(document["config"], "config"),
        tensors=tensors,
        assets={name: _asset(name, value) for name, value in assets.items()},
        provenance=doc.free_object(document["provenance"], "provenance"),
        quality=doc.free_object(document["quality"], "quality"),
    )


_TENSOR_KEYS = ("name", "shape", "dtype", "layout", "group_size", "scale_dtype", "data")


def _tensor(value: object, index: int) -> TensorEntry:
    found = doc.with_keys(value, f"tensor number {index}", _TENSOR_KEYS, ("scales", "row_factors"))
    name = doc.as_name(found["name"], f"the name of tensor number {index}")
    where = f"tensor {name!r}"
    shape = doc.as_shape(found["shape"], f"the shape of {where}")
    scale_dtype = found["scale_dtype"]
    coding = Coding(
        dtype=doc.as_text(found["dtype"], f"the dtype of {where}"),  # type: ignore[arg-type]  # checked below
        layout=doc.as_text(found["layout"], f"the layout of {where}"),  # type: ignore[arg-type]
        group_size=doc.as_count(found["group_size"], f"the group_size of {where}"),
        scale_dtype=None if scale_dtype is None else doc.as_text(scale_dtype, f"the scale_dtype of {where}"),  # type: ignore[arg-type]
    )
    problem = coding_problem(shape, coding)
    if problem is not None:
        raise HeaderError(f"{where} cannot be read: {problem}")
    blobs = {part: _blob(found[part], part, where) for part in PARTS if part in found}
    check_sizes(name, shape, coding, blobs)
    return TensorEntry(name, shape, coding, blobs)


def check_sizes(name: str, shape: tuple[int, ...], coding: Coding, blobs: dict[str, Blob]) -> None:
    """Raises LayoutError unless the tensor has exactly the blobs, of exactly the bytes, that its shape asks for."""
    expected = sizes(shape, coding)
    for part in PARTS:
        due = getattr(expected, part)
        blob = blobs.get(part)
        if (blob.nbytes if blob else 0) != due:
            raise LayoutError(
                f"tensor {name!r} of shape {list(shape)} takes {due} bytes of {part}, "
                f"its header entry has {blob.nbytes if blob else 'none'}"
            )
        if blob is not None and due == 0:
            raise LayoutError(f"tensor {name!r} of dtype {coding.dtype} has no {part}, its header entry names some")


def _blob(value: object, part: str, owner: str) -> Blob:
    where = f"{part} of {owner}"
    found = doc.with_keys(value, where, ("offset", "nbytes", "sha256"))
    return Blob(
        offset=doc.as_count(found["offset"], f"the offset of {where}"),
        nbytes=doc.as_count(found["nbytes"], f"the nbytes of {where}"),
        sha256=_digest(found["sha256"], where),
    )


def _digest(value: object, where: str) -> str:
    digest = doc.as_text(value, f"the sha256 of {where}")
    if not _SHA256.fullmatch(digest):
        raise HeaderError(f"the sha256 of {where} must be {SHA256_HEX_DIGITS} hexadecimal digits in lower case")
    return digest


def _asset(name: str, value: object) -> AssetEntry:
    where = f"asset {doc.shown(name)}"
    if not _ASSET_NAME.fullmatch(name):
        raise HeaderError(f"{where}: a name has up to 128 letters, digits, '.', '_', '-', the first no '.' or '-'")
    found = doc.with_keys(value, where, ("offset", "nbytes", "sha256", "size", "compression"))
    blob = Blob(
        offset=doc.as_count(found["offset"], f"the offset of {where}"),
        nbytes=doc.as_count(found["nbytes"], f"the nbytes of {where}", MAX_ASSET_BYTES),
        sha256=_digest(found["sha256"], where),
    )
    size = doc.as_count(found["size"], f"the size of {where}", MAX_ASSET_BYTES)
    compression = doc.as_text(found["compression"], f"the compression of {where}")
    if compression not in COMPRESSIONS:
        raise HeaderError(f"the compression of {where} is {doc.shown(compression)}, not one of {COMPRESSIONS}")
    if compression == "none" and size != blob.nbytes:
        raise LayoutError(f"{where} is stored as it is, in {blob.nbytes} bytes, but its size is given as {size}")
    return AssetEntry(name, blob, size, compression)


def check_ranges(header: Header, header_end: int, file_size: int) -> None:
    """Raises LayoutError unless the blobs of a version 2 file lie one after another with nothing but padding between,
    and fill the file; TruncatedError if they do but the file ends early."""
    end, before = header_end, "the header"
    start = aligned(header_end, DATA_ALIGNMENT)
    for what, blob in sorted(header.blobs(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if blob.offset < end:
            raise LayoutError(f"{what} at byte {blob.offset} overlaps {before}, which ends at {end}")
        if blob.offset != start:
            outside = f", outside the file of {file_size} bytes" if blob.offset > file_size else ""
            raise LayoutError(f"{what} lies at byte {blob.offset}{outside}; after {before} it must lie at {start}")
        end, before = blob.offset + blob.nbytes, what
        start = aligned(end, BLOB_ALIGNMENT)
    if file_size < end:
        raise TruncatedError(f"the file has {file_size} bytes, its header promises {end}; copy or convert it again")
    if file_size > end:
        raise LayoutError(f"the file has {file_size} bytes, {file_size - end} more than its header accounts for")
