"""Files that lie, one in each way, in `attacks/`: run this to write them anew.

    python tests/container/make_attacks.py

Each is a small true file with one thing changed. ATTACKS says which error each must end in.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from cellmd.errors import (
    CorruptError,
    HeaderError,
    LayoutError,
    NotCellmdError,
    TruncatedError,
    UnsupportedModelError,
)
from container.files import join_v1, join_v2, v1_document

FOLDER = Path(__file__).with_name("attacks")

Change = Callable[[dict[str, Any], list[bytes]], Any]


def blob(offset: int, content: bytes) -> dict[str, Any]:
    return {"offset": offset, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def base() -> tuple[dict[str, Any], list[bytes]]:
    """A true file: an asset; an int4 matrix w with u8 scales; an int4 matrix r with f16 scales; a vector n."""
    contents = [
        b"hello",
        bytes(range(64)),
        bytes(range(1, 17)),
        np.ones(16, "<f4").tobytes(),
        bytes(8),
        np.ones(2, "<f2").tobytes(),
        np.arange(3, dtype="<f2").tobytes(),
    ]
    blobs = [blob(4096 + 64 * i, content) for i, content in enumerate(contents)]
    matrix = {"dtype": "i4", "group_size": 32}
    document = {
        "format": "cellmd",
        "config": {},
        "tensors": [
            {"name": "w", "shape": [16, 8], "layout": "tile16", "scale_dtype": "i8", **matrix}
            | {"data": blobs[1], "scales": blobs[2], "row_factors": blobs[3]},
            {"name": "r", "shape": [2, 7], "layout": "row", "scale_dtype": "f16", **matrix}
            | {"data": blobs[4], "scales": blobs[5]},
            {"name": "n", "shape": [3], "layout": "row", "scale_dtype": None, "dtype": "f16", "group_size": 0}
            | {"data": blobs[6]},
        ],
        "assets": {"a": {**blobs[0], "size": 5, "compression": "none"}},
        "provenance": {},
        "quality": {},
    }
    return document, contents


def stored(contents: list[bytes]) -> bytes:
    return b"".join(content.ljust(64, b"\0") for content in contents[:-1]) + contents[-1]


def v2(change: Change) -> bytes:
    """The true file after `change(document, contents)`, which returns None or the document to store instead."""
    document, contents = base()
    instead = change(document, contents)
    return join_v2(document if instead is None else instead, stored(contents))


def put(value: object, *path: str | int) -> Change:
    """Set one value of the header."""

    def change(document: dict[str, Any], _: list[bytes]) -> None:
        where: Any = document
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(document: dict[str, Any], _: list[bytes]) -> None:
        where: Any = document
        for key in path[:-1]:
            where = where[key]
        del where[path[-1]]

    return change


def text(old: str, new: str) -> Change:
    """Replace within the header's text: for what no JSON writer would write."""

    def change(document: dict[str, Any], _: list[bytes]) -> bytes:
        header = json.dumps(document)
        assert old in header
        return header.replace(old, new, 1).encode("utf-8", "surrogatepass")

    return change


def content(index: int, new: bytes, *owner: str | int) -> Change:
    """Replace stored bytes, with a checksum that is true, so that only the bytes themselves are wrong."""

    def change(document: dict[str, Any], contents: list[bytes]) -> None:
        contents[index] = new
        where: Any = document
        for key in owner:
            where = where[key]
        where["sha256"] = hashlib.sha256(new).hexdigest()

    return change


def other_scales(dtype: str, scales: np.ndarray) -> Change:
    """Tensor r with scales of another type."""

    def change(document: dict[str, Any], contents: list[bytes]) -> None:
        contents[5] = scales.tobytes()
        document["tensors"][1] |= {"scale_dtype": dtype, "scales": blob(4096 + 5 * 64, contents[5])}

    return change


def asset(packed: bytes, size: int, compression: str = "zlib") -> Change:
    def change(document: dict[str, Any], contents: list[bytes]) -> None:
        assert len(packed) <= 64
        contents[0] = packed
        document["assets"]["a"] = {**blob(4096, packed), "size": size, "compression": compression}

    return change


def many_assets(document: dict[str, Any], _: list[bytes]) -> None:
    document["assets"] = {f"a{i}": document["assets"]["a"] for i in range(65)}


def twice(document: dict[str, Any], _: list[bytes]) -> None:
    document["tensors"].append(document["tensors"][0])


def swapped(document: dict[str, Any], _: list[bytes]) -> None:
    """Two tensors at one place, and so a hole where the second was."""
    document["tensors"][1]["data"]["offset"] = document["tensors"][0]["data"]["offset"]


def v1(change: Change) -> bytes:
    document, blobs = v1_document()
    change(document, blobs)
    return join_v1(document, blobs)


def v1_moved(index: int, offset: int | str) -> bytes:
    """A version 1 file with one offset changed, to the same number of digits so that nothing else moves."""
    document, blobs = v1_document()
    true = join_v1(document, blobs)
    old = document["tensors"][index]["offset_bytes"]
    return true.replace(f'"offset_bytes": {old}'.encode(), f'"offset_bytes": {offset}'.encode())


def without(name: str) -> Change:
    def change(document: dict[str, Any], blobs: list[bytes]) -> None:
        index = next(i for i, entry in enumerate(document["tensors"]) if entry["name"] == name)
        del document["tensors"][index], blobs[index]

    return change


def v1_blob(index: int, new: bytes) -> Change:
    def change(document: dict[str, Any], blobs: list[bytes]) -> None:
        blobs[index] = new
        document["tensors"][index]["nbytes"] = len(new)

    return change


UP_PROJ = "model.language_model.layers.0.mlp.up_proj.weight"
W, R, N = ("tensors", 0), ("tensors", 1), ("tensors", 2)
TRUE = v2(lambda *_: None)

ATTACKS: dict[str, tuple[type[Exception], bytes]] = {
    # not this format, or cut short
    "empty": (TruncatedError, b""),
    "magic_cut": (TruncatedError, b"CEL"),
    "prefix_cut": (TruncatedError, b"CELLM\x02\x00"),
    "magic_other": (NotCellmdError, b"GGUF" + TRUE[4:]),
    "magic_lower": (NotCellmdError, b"cellm" + TRUE[5:]),
    "version_0": (NotCellmdError, b"CELLM\x00" + TRUE[6:]),
    "version_3": (NotCellmdError, b"CELLM\x03" + TRUE[6:]),
    "header_cut": (TruncatedError, TRUE[:500]),
    "header_length_beyond_file": (TruncatedError, b"CELLM\x02" + struct.pack("<I", 1 << 20) + TRUE[10:]),
    "header_length_4gib": (HeaderError, b"CELLM\x02" + struct.pack("<I", 2**32 - 1) + TRUE[10:]),
    "blob_cut": (TruncatedError, TRUE[:-1]),
    "all_blobs_cut": (TruncatedError, TRUE[:4096]),
    # JSON
    "json_none": (HeaderError, b"CELLM\x02" + struct.pack("<I", 0)),
    "json_cut": (HeaderError, v2(lambda d, _: json.dumps(d).encode()[:-1])),
    "json_then_more": (HeaderError, v2(lambda d, _: json.dumps(d).encode() + b"{}")),
    "json_list": (HeaderError, v2(lambda *_: [])),
    "json_number": (HeaderError, v2(lambda *_: 7)),
    "json_not_utf8": (HeaderError, v2(lambda d, _: json.dumps(d).encode() + b"\xff")),
    "json_utf16": (HeaderError, v2(lambda d, _: json.dumps(d).encode("utf-16"))),
    "json_nan": (HeaderError, v2(text('"config": {}', '"config": {"x": NaN}'))),
    "json_infinity": (HeaderError, v2(text('"config": {}', '"config": {"x": -Infinity}'))),
    "json_repeated_key": (HeaderError, v2(text('"config": {}', '"config": {}, "config": {}'))),
    "json_deep_list": (HeaderError, v2(lambda *_: b"[" * 50_000)),
    "json_deep_object": (HeaderError, v2(lambda *_: b'{"a":' * 20_000)),
    "json_deep_config": (HeaderError, v2(text('"config": {}', '"config": {"x": ' + "[" * 40 + "]" * 40 + "}"))),
    "json_integer_of_5000_digits": (HeaderError, v2(text('"shape": [3]', '"shape": [' + "9" * 5000 + "]"))),
    # the header's own keys
    "format_other": (HeaderError, v2(put("gguf", "format"))),
    "format_missing": (HeaderError, v2(drop("format"))),
    "quality_missing": (HeaderError, v2(drop("quality"))),
    "unknown_key": (HeaderError, v2(put(1, "extra"))),
    "config_list": (HeaderError, v2(put([], "config"))),
    "provenance_null": (HeaderError, v2(put(None, "provenance"))),
    "tensors_object": (HeaderError, v2(put({}, "tensors"))),
    "assets_list": (HeaderError, v2(put([], "assets"))),
    # tensor entries
    "tensor_string": (HeaderError, v2(put("w", *W))),
    "tensor_twice": (HeaderError, v2(twice)),
    "tensor_without_data": (HeaderError, v2(drop(*W, "data"))),
    "tensor_unknown_key": (HeaderError, v2(put(0, *W, "zero_points"))),
    "name_empty": (HeaderError, v2(put("", *W, "name"))),
    "name_newline": (HeaderError, v2(put("w\n\x1b[2J", *W, "name"))),
    "name_surrogate": (HeaderError, v2(text('"name": "w"', '"name": "\\ud800"'))),
    "name_long": (HeaderError, v2(put("w" * 257, *W, "name"))),
    "name_number": (HeaderError, v2(put(1, *W, "name"))),
    "shape_number": (HeaderError, v2(put(16, *W, "shape"))),
    "shape_zero": (HeaderError, v2(put([16, 0], *W, "shape"))),
    "shape_negative": (HeaderError, v2(put([-16, -8], *W, "shape"))),
    "shape_float": (HeaderError, v2(put([16.0, 8], *W, "shape"))),
    "shape_beyond_limit": (HeaderError, v2(put([2**31, 8], *W, "shape"))),
    "shape_rank_9": (HeaderError, v2(put([1] * 8 + [3], *N, "shape"))),
    "dtype_unknown": (HeaderError, v2(put("i2", *W, "dtype"))),
    "dtype_null": (HeaderError, v2(put(None, *W, "dtype"))),
    "layout_unknown": (HeaderError, v2(put("tile32", *W, "layout"))),
    "layout_of_float": (HeaderError, v2(put("tile16", *N, "layout"))),
    "group_48": (HeaderError, v2(put(48, *W, "group_size"))),
    "group_true": (HeaderError, v2(put(True, *W, "group_size"))),
    "scale_dtype_unknown": (HeaderError, v2(put("u8", *W, "scale_dtype"))),
    "scale_dtype_null": (HeaderError, v2(put(None, *W, "scale_dtype"))),
    "scale_dtype_of_float": (HeaderError, v2(put("f16", *N, "scale_dtype"))),
    "int4_of_rank_3": (HeaderError, v2(put([16, 4, 2], *W, "shape"))),
    # ranges
    "offset_float": (HeaderError, v2(put(4160.0, *W, "data", "offset"))),
    "offset_exponent": (HeaderError, v2(text('"offset": 4160', '"offset": 4160e0'))),
    "offset_string": (HeaderError, v2(put("4160", *W, "data", "offset"))),
    "offset_true": (HeaderError, v2(put(True, *W, "data", "offset"))),
    "offset_negative": (HeaderError, v2(put(-64, *W, "data", "offset"))),
    "offset_beyond_integers": (HeaderError, v2(put(2**64, *W, "data", "offset"))),
    "offset_outside": (LayoutError, v2(put(2**40, *W, "data", "offset"))),
    "offset_last_outside": (LayoutError, v2(put(2**53, *N, "data", "offset"))),
    "offset_in_header": (LayoutError, v2(put(0, *W, "data", "offset"))),
    "offset_unaligned": (LayoutError, v2(put(4481, *N, "data", "offset"))),
    "overlap": (LayoutError, v2(swapped)),
    "overlap_by_a_byte": (LayoutError, v2(put(4096 + 63, *W, "data", "offset"))),
    "hole": (LayoutError, v2(put(4096 + 7 * 64, *N, "data", "offset"))),
    "more_bytes_at_the_end": (LayoutError, TRUE + b"\0"),
    "nbytes_small": (LayoutError, v2(put(63, *W, "data", "nbytes"))),
    "nbytes_large": (LayoutError, v2(put(65, *W, "data", "nbytes"))),
    "nbytes_huge": (LayoutError, v2(put(2**53, *W, "data", "nbytes"))),
    "shape_larger_than_data": (LayoutError, v2(put([2**31 - 1, 2**31 - 1], *W, "shape"))),
    "shape_larger_by_a_tile": (LayoutError, v2(put([17, 8], *W, "shape"))),
    "scales_missing": (LayoutError, v2(drop(*W, "scales"))),
    "scales_short": (LayoutError, v2(put(1, *W, "scales", "nbytes"))),
    "scales_of_float": (LayoutError, v2(put(blob(4608, b"12"), *N, "scales"))),
    "row_factors_missing": (LayoutError, v2(drop(*W, "row_factors"))),
    "row_factors_of_f16_scales": (LayoutError, v2(put(blob(4608, bytes(8)), *R, "row_factors"))),
    "blob_without_sha256": (HeaderError, v2(drop(*W, "data", "sha256"))),
    "sha256_short": (HeaderError, v2(put("0" * 63, *W, "data", "sha256"))),
    "sha256_upper": (HeaderError, v2(put("A" * 64, *W, "data", "sha256"))),
    # contents
    "checksum_of_data": (CorruptError, v2(put("0" * 64, *W, "data", "sha256"))),
    "checksum_of_asset": (CorruptError, v2(put("0" * 64, "assets", "a", "sha256"))),
    "padding_not_zero": (CorruptError, TRUE[: 4096 + 5] + b"x" + TRUE[4096 + 6 :]),
    "scales_nan": (CorruptError, v2(content(5, np.array([1, np.nan], "<f2").tobytes(), *R, "scales"))),
    "scales_infinite": (CorruptError, v2(content(5, np.array([-np.inf, 1], "<f2").tobytes(), *R, "scales"))),
    "scales_nan_bf16": (CorruptError, v2(other_scales("bf16", np.array([0x3F80, 0x7FC1], "<u2")))),
    "scales_nan_f32": (CorruptError, v2(other_scales("f32", np.array([np.nan, 1], "<f4")))),
    "row_factors_nan": (CorruptError, v2(content(3, np.full(16, np.nan, "<f4").tobytes(), *W, "row_factors"))),
    "row_factors_infinite": (CorruptError, v2(content(3, np.full(16, np.inf, "<f4").tobytes(), *W, "row_factors"))),
    "row_factors_negative": (CorruptError, v2(content(3, np.full(16, -1, "<f4").tobytes(), *W, "row_factors"))),
    # assets
    "asset_name_path": (HeaderError, v2(text('"a": {', '"../a": {'))),
    "asset_name_hidden": (HeaderError, v2(text('"a": {', '".a": {'))),
    "asset_name_surrogate": (HeaderError, v2(text('"a": {', '"\\udfff": {'))),
    "asset_65": (HeaderError, v2(many_assets)),
    "asset_huge": (HeaderError, v2(put(2**40, "assets", "a", "size"))),
    "asset_size_differs": (LayoutError, v2(put(6, "assets", "a", "size"))),
    "asset_compression_unknown": (HeaderError, v2(put("xz", "assets", "a", "compression"))),
    "asset_bomb": (CorruptError, v2(asset(zlib.compress(bytes(40_000), 9), 10))),
    "asset_shorter_than_stated": (CorruptError, v2(asset(zlib.compress(b"hello"), 6))),
    "asset_cut": (CorruptError, v2(asset(zlib.compress(b"hello")[:-1], 5))),
    "asset_not_zlib": (CorruptError, v2(asset(b"hello", 5))),
    "asset_then_more": (CorruptError, v2(asset(zlib.compress(b"hello") + b"x", 5))),
    # version 1
    "v1_cut": (TruncatedError, v1(lambda *_: None)[:-1]),
    "v1_outside": (TruncatedError, v1_moved(0, 6400)),
    "v1_unaligned": (LayoutError, v1_moved(0, 2049)),
    "v1_in_header": (LayoutError, v1_moved(1, 1024)),
    "v1_overlap": (LayoutError, v1_moved(1, 2048)),
    "v1_offset_float": (HeaderError, v1_moved(0, "20e2")),
    "v1_without_scales": (LayoutError, v1(without(f"{UP_PROJ}.qscale"))),
    "v1_scales_alone": (LayoutError, v1(without(UP_PROJ))),
    "v1_scales_short": (LayoutError, v1(v1_blob(1, bytes(8)))),
    "v1_scales_nan": (CorruptError, v1(v1_blob(1, np.full(5, np.nan, "<f2").tobytes()))),
    "v1_scales_int8": (LayoutError, v1(put("i8", "tensors", 1, "dtype"))),
    "v1_data_short": (LayoutError, v1(v1_blob(0, bytes(19)))),
    "v1_rank_3": (LayoutError, v1(put([5, 7, 1], "tensors", 0, "shape"))),
    "v1_int2": (HeaderError, v1(put("i2", "tensors", 0, "dtype"))),
    "v1_twice": (HeaderError, v1(put(f"{UP_PROJ}.qscale", "tensors", 0, "name"))),
    "v1_without_tensors": (HeaderError, b"CELLM\x01\x02\x00\x00\x00{}"),
    "v1_without_text_config": (UnsupportedModelError, v1(put(None, "source_text_config"))),
    "v1_text_config_list": (HeaderError, v1(put([], "source_text_config"))),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.cellmd"):
        old.unlink()
    for name, (_, attack) in ATTACKS.items():
        (FOLDER / f"{name}.cellmd").write_bytes(attack)
    print(f"{len(ATTACKS)} files in {FOLDER}")


if __name__ == "__main__":
    main()
