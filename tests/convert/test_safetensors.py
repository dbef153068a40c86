"""The safetensors reader: exact values, and its own clear error for whatever a broken or hostile file may hold."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmd.convert.safetensors import MAX_HEADER_BYTES, SafetensorsFile
from cellmd.errors import CheckpointError
from cellmd.quant.floats import from_stored
from checkpoints import to_bfloat16, write_safetensors

TENSORS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(4, 3) / 7,
    "scalar": np.asarray(-np.inf, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "conv": np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 2, 2, 2),
}


def raw_file(path: Path, header: Any, data: bytes = b"", claimed: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_values_come_back(dtype: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS, dtype)
    file = SafetensorsFile(tmp_path / "x")
    for name, values in TENSORS.items():
        stored = file.read_stored(name)
        read = from_stored(stored, file.tensors[name].dtype)
        if dtype == "bfloat16":
            expected = (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
        else:
            expected = values.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(read, expected)
        assert read.shape == values.shape
    np.testing.assert_array_equal(file.read_stored("matrix", 1, 3), file.read_stored("matrix")[1:3])
    file.close()


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry(0, 8)}, b"1234567", "cut short"),
        ({"a": entry(0, 8)}, b"123456789", "1 bytes follow"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12, "'b' overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, b"x" * 16, "'b' follows a gap"),
        ({"a": entry(4, 8)}, b"x" * 8, "'a' follows a gap"),
        ({"a": entry(0, 8, [3])}, b"x" * 8, "takes 12 bytes"),
        ({"a": entry(8, 0, [2])}, b"x" * 8, "takes 8 bytes"),
        ({"a": entry(0, 8, [-2])}, b"x" * 8, "no valid shape"),
        ({"a": entry(0, 8, [True, 2])}, b"x" * 8, "no valid shape"),
        ({"a": entry(0, 8, [1] * 9 + [2])}, b"x" * 8, "no valid shape"),
        ({"a": entry(0, 8, "2")}, b"x" * 8, "no valid shape"),
        ({"a": {**entry(0, 8), "data_offsets": [0]}}, b"x" * 8, "no valid data_offsets"),
        ({"a": {**entry(0, 8), "data_offsets": [0, 2**60]}}, b"x" * 8, "no valid data_offsets"),
        ({"a": entry(0, 8, [8], "I8")}, b"x" * 8, "'I8'.*already quantised"),
        ({"a": entry(0, 8, [2], None)}, b"x" * 8, "None"),
        ({"a": 3}, b"", "not an object"),
        ({"a" * 500: entry(0, 8)}, b"x" * 8, "500 characters"),
        ([1], b"", "not a JSON object"),
        (b'{"a": ', b"", "not valid JSON"),
        (b'{"a": 1, "a": 1}', b"", "a key occurs twice"),
        (b"\xff{}", b"", "not valid JSON"),
        (b"[" * 200_000, b"", "not valid JSON"),
    ],
)
def test_each_defect_has_its_own_message(header: Any, data: bytes, words: str, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=words) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("claimed", [3, 2**63, MAX_HEADER_BYTES + 1])
def test_a_header_larger_than_the_file_is_not_allocated(claimed: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="header claims"):
        SafetensorsFile(raw_file(tmp_path / "x", b"{}", claimed=claimed))


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "whole", TENSORS)
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(tmp_path / "cut")


@given(at=st.integers(0, 10**4), value=st.integers(0, 255))
def test_a_changed_byte_ends_in_no_other_error(at: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("changed")
    write_safetensors(folder / "x", TENSORS)
    content = bytearray((folder / "x").read_bytes())
    content[at % len(content)] = value
    (folder / "x").write_bytes(content)
    with contextlib.suppress(CheckpointError):
        file = SafetensorsFile(folder / "x")
        for name in file.tensors:
            file.read_stored(name)
        file.close()


def test_a_file_that_shrinks_while_open_is_noticed(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS)
    file = SafetensorsFile(tmp_path / "x")
    with (tmp_path / "x").open("r+b") as other:
        other.truncate(file.tensors["conv"].offset)
    with pytest.raises(CheckpointError, match="ends inside tensor 'conv'"):
        file.read_stored("conv")
    file.close()
