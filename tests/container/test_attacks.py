"""Every file that lies ends in its own error, which names the file, quickly and in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from cellmd.container import Container
from cellmd.errors import ContainerError, HeaderError, TruncatedError
from container.files import join_v2, touch_everything, v1_file, write_v2
from container.make_attacks import ATTACKS, FOLDER, TRUE

COMMITTED = sorted(path.stem for path in FOLDER.glob("*.cellmd"))


def test_the_folder_holds_each_attack_once() -> None:
    assert sorted(ATTACKS) == COMMITTED


def test_the_file_that_the_attacks_change_is_true(tmp_path: Path) -> None:
    path = tmp_path / "true.cellmd"
    path.write_bytes(TRUE)
    touch_everything(path)


@pytest.mark.parametrize("name", COMMITTED)
def test_attack(name: str) -> None:
    path = FOLDER / f"{name}.cellmd"
    expected = ATTACKS[name][0]
    with pytest.raises(expected) as caught:
        touch_everything(path)
    assert type(caught.value) is expected
    message = str(caught.value)
    assert str(path) in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_cut_at_any_byte(tmp_path: Path, version: int) -> None:
    path = tmp_path / "cut.cellmd"
    content = v1_file() if version == 1 else write_v2(path).read_bytes()
    path.write_bytes(content)
    touch_everything(path)
    for length in range(len(content) - 1, -1, -1):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(TruncatedError):
            Container.open(path)


def opened(path: Path) -> tuple[float, int]:
    """Seconds and peak bytes of the attempt to open a file, which must fail."""
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(ContainerError):
        Container.open(path)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, peak


@pytest.mark.parametrize(
    "header",
    [
        b'{"tensors": [' + b"{}," * 1_000_000 + b"{}]}",
        b"[" + b"[]," * 3_000_000 + b"[]]",
        b"[" + b"0," * 8_000_000 + b"0]",
        b"[" * (16 << 20),
        b'{"' + b"x" * (16 << 20) + b'": 1}',
        b'{"a":' * (3 << 20),
        b"9" * (16 << 20),
    ],
    ids=["a million tensors", "lists", "numbers", "deep lists", "a long key", "deep objects", "a long number"],
)
def test_header_bombs_cost_little_more_than_reading_them(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bomb.cellmd"
    path.write_bytes(join_v2(header, b""))
    seconds, peak = opened(path)
    assert peak < 8 * len(header)
    assert seconds < 5


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.cellmd"
    with path.open("wb") as file:
        file.write(b"CELLM\x02" + struct.pack("<I", (64 << 20) + 1))
        file.truncate(10 + (64 << 20) + 1)
    with pytest.raises(HeaderError, match="67108865 bytes, more than the 67108864 allowed"):
        Container.open(path)
    _, peak = opened(path)
    assert peak < 1 << 20
