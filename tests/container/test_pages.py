"""How files are mapped and cached: asked of Linux, and of no influence on what is in them."""

from __future__ import annotations

import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cellmd.container import Container, pages, reader
from cellmd.container.writer import ContainerWriter, TensorDeclaration
from cellmd.quant import Coding, encode_block
from cellmd.quant.decode import decode

MATRIX = "model.language_model.layers.0.mlp.down_proj.weight"
TABLE = "model.language_model.embed_tokens_per_layer.weight"
TOWER = "model.vision_tower.matrix"
CODINGS = {
    MATRIX: Coding("i4", "tile16", 128, "i8"),
    TOWER: Coding("i4", "tile16", 128, "i8"),
    TABLE: Coding("i4", "row", 256, "i8"),
}
SHAPE = (4096, 2048)


def write(path: Path) -> bytes:
    """A file of more than one large page a tensor, its blocks written back to front."""
    tensors = [TensorDeclaration(name, SHAPE, coding) for name, coding in CODINGS.items()]
    rows = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    with ContainerWriter(path, tensors=tensors, config={}) as writer:
        for name, coding in CODINGS.items():
            for first in (3072, 1024, 2048, 0):
                writer.write(name, first, encode_block(rows[first : first + 1024], coding))
        writer.finish()
    return path.read_bytes()


def maps_of(path: Path) -> list[str]:
    """What Linux tells of each range that the file is mapped at."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return [each for each in maps if str(path) in each]


def flagged(path: Path, flag: str) -> list[tuple[int, int]]:
    """Ranges of the file whose maps have a flag of madvise."""
    ranges = []
    for each in maps_of(path):
        if re.search(rf"^VmFlags:.* {flag}\b", each, re.MULTILINE):
            span, _, offset, *_ = each.split()
            start, stop = (int(end, 16) for end in span.split("-"))
            ranges.append((int(offset, 16), int(offset, 16) + stop - start))
    return ranges


def resident_bytes(path: Path) -> int:
    sizes = (re.search(r"^Rss: +(\d+) kB", each, re.MULTILINE) for each in maps_of(path))
    return sum(1024 * int(size[1]) for size in sizes if size)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how the file is mapped")
def test_what_every_step_reads_has_large_pages_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.cellmd"
    write(path)
    with Container.open(path) as container:
        assert container.tensors[MATRIX].n_bytes
        blobs = container._header.tensors[MATRIX].blobs.values()
        ((start, stop),) = flagged(path, "hg")
        first, last = min(blob.offset for blob in blobs), max(blob.offset + blob.nbytes for blob in blobs)
        assert first - mmap.PAGESIZE < start <= first
        assert last <= stop < last + mmap.PAGESIZE
        small = flagged(path, "nh")
        assert sum(stop - start for start, stop in [*small, (start, stop)]) >= path.stat().st_size


def test_what_is_read_among_it_comes_by_way_of_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces of the cache in the midst of a matrix would keep large ones away."""
    path = tmp_path / "f.cellmd"
    write(path)
    brought: list[tuple[int, int]] = []
    monkeypatch.setattr(reader, "bring_in", lambda mapped, *span: brought.append(span))
    with Container.open(path) as container:
        assert len(list(container.tensors.values())) == len(CODINGS)
        factors = container._header.tensors[MATRIX].blobs["row_factors"]
        assert brought == [(factors.offset, factors.offset + factors.nbytes)]


def test_verifying_reads_the_disk_and_what_every_step_reads_in_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each range by way of the map first, and only then as it is checked."""
    path = tmp_path / "f.cellmd"
    write(path)
    done: list[tuple[str, int, int]] = []
    pread = os.pread

    def reading(file: int, n: int, offset: int) -> bytes:
        done.append(("read", offset, offset + n))
        return pread(file, n, offset)

    monkeypatch.setattr(reader, "forget", lambda file: done.append(("forget", 0, os.fstat(file).st_size)))
    monkeypatch.setattr(reader, "bring_in", lambda mapped, start, stop: done.append(("bring in", start, stop)))
    monkeypatch.setattr(os, "pread", reading)
    with Container.open(path) as container:
        assert container.verify() > 0
        blobs = container._header.tensors[MATRIX].blobs.values()
    assert done[0] == ("forget", 0, path.stat().st_size)
    for blob in blobs:
        brought = done.index(("bring in", blob.offset, blob.offset + blob.nbytes))
        assert not any(
            what == "read" and start < blob.offset + blob.nbytes and stop > blob.offset
            for what, start, stop in done[:brought]
        )
    assert {start for what, start, _ in done if what == "bring in"} == {blob.offset for blob in blobs}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_making_tensors_touches_no_page(tmp_path: Path) -> None:
    path = tmp_path / "f.cellmd"
    codings = {**CODINGS, "norm": Coding("f16"), "scaled": Coding("i4", "tile16", 128, "f16")}
    rows = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    declared = [TensorDeclaration(name, rows.shape, coding) for name, coding in codings.items()]
    with ContainerWriter(path, tensors=declared, config={}) as writer:
        for name, coding in codings.items():
            writer.write(name, 0, encode_block(rows, coding))
        writer.finish()
    with Container.open(path) as container:
        tensors = list(container.tensors.values())
        assert len(tensors) == len(codings)
        assert decode(container.tensors["norm"]).any()
        assert resident_bytes(path) == 0
        assert decode(container.tensors[MATRIX]).any()
        assert resident_bytes(path) > 0


@pytest.mark.parametrize("way", ["unknown", "refused"])
def test_files_are_the_same_where_the_system_knows_no_large_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    want = write(tmp_path / "f.cellmd")
    if way == "unknown":
        monkeypatch.setattr(pages, "_KNOWN", False)
    else:
        monkeypatch.setattr(pages, "_POPULATE_READ", 9999)  # no such advice
    assert write(tmp_path / "g.cellmd") == want
    with Container.open(tmp_path / "g.cellmd") as container:
        assert container.tensors[TABLE].data.any()
