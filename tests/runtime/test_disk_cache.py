"""Files that outlive the process: whole or not at all, checked, private, bounded; whatever else lies in the folder."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.errors import ArgumentError
from cellmd.runtime import disk_cache
from cellmd.runtime.disk_cache import DiskCache

ONE = "one model"


def part(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def contents(cache: DiskCache, name: str) -> list[bytes] | None:
    stored = cache.read(name)
    return None if stored is None else [bytes(p) for p in stored.parts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "cache"


@pytest.fixture
def cache(folder: Path) -> DiskCache:
    return DiskCache(folder, 1 << 20, ONE)


@given(parts=st.lists(st.binary(max_size=200), max_size=5), number=st.integers())
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], number: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = DiskCache(folder, 1 << 20, ONE)
    name = cache.name("prefix", b"key")
    assert cache.write(name, {"number": number}, [part(p) for p in parts])
    for later in (cache, DiskCache(folder, 1 << 20, ONE)):
        stored = later.read(name)
        assert stored is not None
        assert stored.head["number"] == number
        assert [bytes(p) for p in stored.parts] == parts
        first = later.first_part(name)
        assert first is not None
        assert [bytes(p) for p in first.parts] == parts[:1]


def test_files_are_private_and_nothing_is_left_over(cache: DiskCache, folder: Path) -> None:
    os.umask(before := os.umask(0))
    os.umask(0)
    try:
        name = cache.name("prefix", b"key")
        assert cache.write(name, {}, [part(b"x" * 100)])
    finally:
        os.umask(before)
    assert [entry.name for entry in folder.iterdir()] == [name]
    assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_others_files_are_not_found(cache: DiskCache, folder: Path) -> None:
    name = cache.name("prefix", b"key")
    cache.write(name, {}, [part(b"abc")])
    other = DiskCache(folder, 1 << 20, "another model")
    assert other.names("prefix") == []
    assert other.read(other.name("prefix", b"key")) is None
    (folder / other.name("prefix", b"key")).write_bytes((folder / name).read_bytes())
    (folder / other.name("prefix", b"key")).chmod(0o600)
    assert other.read(other.name("prefix", b"key")) is None  # under its name, but it says whose it is
    assert cache.names("prefix") == [name]
    assert cache.names("medium") == []


def test_any_damage_is_noticed(cache: DiskCache, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = cache.name("prefix", b"key")
    cache.write(name, {"n": 1}, [part(b"abc" * 20), part(b"d" * 50)])
    whole = (folder / name).read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [whole + b"x", whole * 2, b"\xff" * 200]
    with caplog.at_level(logging.WARNING):
        for content in damaged:
            (folder / name).write_bytes(content)
            assert cache.read(name) is None
            cache.first_part(name)
    assert "is not used" in caplog.text
    (folder / name).write_bytes(whole)
    assert contents(cache, name) == [b"abc" * 20, b"d" * 50]


@pytest.mark.parametrize(
    "head", [b"", b"null", b"[]", b"{}", b'{"sizes": 1, "identity": "one model"}', b"[" * 5000, b"\xff"]
)
def test_heads_of_no_form(cache: DiskCache, folder: Path, head: bytes) -> None:
    name = cache.name("prefix", b"key")
    content = disk_cache.MAGIC + len(head).to_bytes(4, "little") + head
    (folder / name).write_bytes(content + bytes(32))
    (folder / name).chmod(0o600)
    assert cache.read(name) is None
    assert cache.first_part(name) is None


def test_what_is_no_private_regular_file_is_not_opened(cache: DiskCache, folder: Path, tmp_path: Path) -> None:
    name = cache.name("prefix", b"key")
    cache.write(name, {}, [part(b"abc")])
    (folder / name).chmod(0o644)
    assert cache.read(name) is None
    (folder / name).chmod(0o600)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert cache.read(name) is None
    (folder / name).unlink()
    os.mkfifo(folder / name, 0o600)
    assert cache.read(name) is None  # and does not wait for a writer
    (folder / name).unlink()
    (folder / name).mkdir()
    assert cache.read(name) is None
    assert not cache.write(name, {}, [part(b"abc")])


def test_the_least_lately_used_go_first(folder: Path) -> None:
    cache = DiskCache(folder, 1 << 20, ONE)
    names = [cache.name("medium", bytes([i])) for i in range(5)]
    cache.write(names[0], {}, [part(bytes(1000))])
    size = (folder / names[0]).stat().st_size
    cache = DiskCache(folder, 3 * size, ONE)
    (folder / "notes.txt").write_text("x" * 10_000)  # not ours: neither counted nor removed
    for i, name in enumerate(names):
        assert cache.write(name, {}, [part(bytes(1000))])
        os.utime(folder / name, (1000 + i, 1000 + i))
        if i == 2:
            assert contents(cache, names[0]) is not None  # used: now
    assert set(cache.names("medium")) == {names[0], names[3], names[4]}
    assert (folder / "notes.txt").exists()
    assert not cache.write(cache.name("medium", b"large"), {}, [part(bytes(4 * size))])
    assert len(cache.names("medium")) == 3
    smaller = DiskCache(folder, size, "another model")
    assert smaller.names("medium") == []
    assert cache.names("medium") == [names[0]]


def test_what_a_dead_process_left_is_removed(folder: Path) -> None:
    cache = DiskCache(folder, 1 << 20, ONE)
    unfinished = folder / f"{cache.name('prefix', b'key')}.abc_123.tmp"
    for age in (0, 2 * 3600):
        unfinished.write_bytes(b"x")
        os.utime(unfinished, (unfinished.stat().st_mtime - age,) * 2)
        DiskCache(folder, 1 << 20, ONE)
        assert unfinished.exists() == (age == 0)


def test_folders_that_cannot_be_trusted(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ArgumentError, match="other users"):
        DiskCache(tmp_path / "open", 1 << 20, ONE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="no folder"):
        DiskCache(tmp_path / "file", 1 << 20, ONE)
    with pytest.raises(ArgumentError, match="at least 1"):
        DiskCache(tmp_path / "cache", 0, ONE)


def test_a_full_disk_is_survived(
    cache: DiskCache, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not cache.write(cache.name("prefix", b"key"), {}, [part(b"abc")])
    assert list(folder.iterdir()) == []
    assert "No space" in caplog.text


def test_several_write_and_read_at_once(folder: Path) -> None:
    caches = [DiskCache(folder, 40_000, ONE) for _ in range(4)]
    wrong: list[object] = []

    def work(number: int) -> None:
        cache, rng = caches[number], np.random.default_rng(number)
        for _ in range(60):
            i = int(rng.integers(20))
            name = cache.name("medium", bytes([i]))
            if rng.random() < 0.5:
                cache.write(name, {}, [part(bytes([i]) * 3000)])
            elif (found := contents(cache, name)) not in (None, [bytes([i]) * 3000]):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(entry.stat().st_size for entry in folder.iterdir()) <= 40_000 + 4 * 3200
