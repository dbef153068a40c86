"""A file appears complete or not at all, the same each time, and only if a reader would take it."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cellmd.container import Container, ContainerWriter, TensorDeclaration
from cellmd.errors import ArgumentError, ContainerError
from cellmd.quant import Coding, decode, encode_block
from container.files import write_v2

CODING = Coding("i4", "tile16", 32, "i8")


def declaration(name: str = "w", shape: tuple[int, ...] = (32, 64), coding: Coding = CODING) -> TensorDeclaration:
    return TensorDeclaration(name, shape, coding)


def block_of(rows: int, columns: int = 64, coding: Coding = CODING):
    return encode_block(np.ones((rows, columns), np.float32), coding)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write_v2(tmp_path / "a.cellmd").read_bytes() == write_v2(tmp_path / "b.cellmd").read_bytes()


def test_threads_and_order_change_nothing(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((640, 512)).astype(np.float32)
    contents = []
    for n_threads, order in ((1, 1), (4, 1), (4, -1)):
        path = tmp_path / f"{n_threads}{order}.cellmd"
        with (
            ContainerWriter(path, tensors=[declaration(shape=weights.shape)], config={}) as writer,
            ThreadPoolExecutor(n_threads) as pool,
        ):
            starts = list(range(0, 640, 16))[::order]
            list(pool.map(lambda s, w=writer: w.write("w", s, encode_block(weights[s : s + 16], CODING)), starts))
            writer.finish()
        contents.append(path.read_bytes())
        with Container.open(path) as container:
            container.verify()
    assert contents[0] == contents[1] == contents[2]


def test_an_exception_leaves_nothing_and_an_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.cellmd"
    path.write_bytes(b"before")

    def fail_midway() -> None:
        with ContainerWriter(path, tensors=[declaration()], config={}) as writer:
            writer.write("w", 0, block_of(16))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert [file.name for file in tmp_path.iterdir()] == ["x.cellmd"]
    assert path.read_bytes() == b"before"


def test_nothing_stands_under_the_name_before_the_end(tmp_path: Path) -> None:
    """What a kill at any moment would leave: only a hidden file of another name."""
    path = tmp_path / "x.cellmd"
    with ContainerWriter(path, tensors=[declaration()], config={}) as writer:
        writer.write("w", 0, block_of(32))
        assert not path.exists()
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".x.cellmd.")
        with pytest.raises(ContainerError):
            Container.open(left)
        writer.finish()
        assert [file.name for file in tmp_path.iterdir()] == ["x.cellmd"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_incomplete_and_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.cellmd", tensors=[declaration()], config={}) as writer:
        writer.write("w", 16, block_of(16))
        with pytest.raises(ArgumentError, match="data of tensor 'w' is incomplete: 0 of 1024 bytes"):
            writer.finish()
        for start, rows in ((16, 16), (0, 32), (32, 16), (16, 32)):
            with pytest.raises(ArgumentError, match="of tensor 'w', row"):
                writer.write("w", start, block_of(rows))
        with pytest.raises(ArgumentError, match="no multiple of 16"):
            writer.write("w", 8, block_of(8))
        with pytest.raises(ArgumentError, match="not declared"):
            writer.write("v", 0, block_of(16))
        with pytest.raises(ArgumentError, match="another coding"):
            writer.write("w", 0, block_of(16, coding=Coding("i4", "tile16", 32, "f16")))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_row_layout_start_anywhere(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.cellmd", np.arange(33, dtype=np.float32).reshape(11, 3)
    tensors = [declaration("a", (11, 3), Coding("f16")), declaration("b", (11, 3), Coding("i4", "row", 0, "f32"))]
    with ContainerWriter(path, tensors=tensors, config={}) as writer:
        for tensor in tensors:
            for start in (5, 0, 10):
                rows = weights[start : {0: 5, 5: 10, 10: 11}[start]]
                writer.write(tensor.name, start, encode_block(rows, tensor.coding))
        writer.finish()
    with Container.open(path) as container:
        assert np.array_equal(decode(container.tensors["a"]), weights)
        assert container.verify() == 3


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"tensors": [declaration(), declaration()]}, "declared twice"),
        ({"tensors": [declaration(shape=(2, 2, 2))]}, "2 dimensions"),
        ({"tensors": [declaration(name="a b")]}, "visible ASCII"),
        ({"tensors": [declaration(name="")]}, "visible ASCII"),
        ({"tensors": [declaration(shape=(0, 4))]}, "dimension of .* is 0"),
        ({"tensors": [declaration(shape=(1,) * 9, coding=Coding("f16"))]}, "9 items"),
        ({"assets": {"../evil": b""}}, "letters, digits"),
        ({"assets": {f"a{i}": b"" for i in range(65)}}, "65 assets"),
        ({"config": {"x": float("nan")}}, "cannot be written as JSON"),
        ({"config": {"x": object()}}, "cannot be written as JSON"),
        ({"provenance": {"deep": nested(33)}}, "nested more than 32"),
    ],
)
def test_what_no_reader_would_take_is_refused_before_a_byte_is_written(tmp_path: Path, arguments, reason) -> None:
    with pytest.raises(ArgumentError, match=reason):
        ContainerWriter(tmp_path / "x.cellmd", **{"tensors": [], "config": {}, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_quality_beyond_its_room_is_refused(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.cellmd", tensors=[declaration()], config={}) as writer:
        writer.write("w", 0, block_of(32))
        with pytest.raises(ArgumentError, match="quality does not fit"):
            writer.finish({"text": "x" * 9000})
        writer.finish({"tensors": {"w": {"max_abs": -1.2345e-300, "rms": -1.2345e-300, "snr_db": -123.45}}})
        with pytest.raises(ArgumentError, match="writer is closed"):
            writer.write("w", 0, block_of(32))


def test_refusals_of_the_disk_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContainerError, match=r"x\.cellmd: cannot be written: No such file"):
        ContainerWriter(tmp_path / "none" / "x.cellmd", tensors=[], config={})

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ContainerWriter(tmp_path / "x.cellmd", tensors=[declaration()], config={}) as writer:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(ContainerError, match="No space left"):
            writer.write("w", 0, block_of(32))
    assert list(tmp_path.iterdir()) == []
