"""What is written is read: tensors, assets, config, sizes, checksums."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmd.container import Container, ContainerWriter, TensorDeclaration
from cellmd.errors import ContainerError, CorruptError
from cellmd.quant import Coding, decode, encode, encode_block, sizes
from container.files import ASSETS, CONFIG, TENSORS, split_v2, weights, write_v2
from quant.strategies import codings, matrices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_v2(tmp_path / "small.cellmd")


def test_everything_comes_back(path: Path) -> None:
    with Container.open(path) as container:
        assert container.version == 2
        assert container.config == CONFIG
        assert container.provenance == {"recipe": "test"}
        assert set(container.quality["tensors"]) == set(TENSORS)
        assert container.assets == tuple(ASSETS)
        assert {name: container.asset(name) for name in container.assets} == ASSETS
        assert list(container.tensors) == list(TENSORS)
        for name, (shape, coding) in TENSORS.items():
            packed, expected = container.tensors[name], encode(name, weights(name), coding)
            assert (packed.name, packed.shape, packed.coding) == (name, shape, coding)
            assert np.array_equal(packed.data, expected.data)
            assert np.array_equal(decode(packed), decode(expected))
            assert packed.n_bytes == sizes(shape, coding).total
        n_blobs = sum(3 if c.scale_dtype == "i8" else 2 if c.quantised else 1 for _, c in TENSORS.values())
        assert container.verify() == n_blobs + len(ASSETS)


def test_the_file_lies_as_documented(path: Path) -> None:
    content = path.read_bytes()
    document, _ = split_v2(content)
    assert content[:6] == b"CELLM\x02"
    blobs = list(document["assets"].values())
    for tensor in document["tensors"]:
        blobs += [tensor[part] for part in ("data", "scales", "row_factors") if part in tensor]
    blobs.sort(key=lambda blob: blob["offset"])
    assert blobs[0]["offset"] % 4096 == 0
    for blob in blobs:
        assert blob["offset"] % 64 == 0
        stored = content[blob["offset"] : blob["offset"] + blob["nbytes"]]
        assert hashlib.sha256(stored).hexdigest() == blob["sha256"]
    assert blobs[-1]["offset"] + blobs[-1]["nbytes"] == len(content)


asset_names = st.from_regex(r"[a-z_][a-z0-9._-]{0,9}", fullmatch=True)
json_values = st.recursive(st.none() | st.text() | st.integers(0, 9), st.lists)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.lists(st.tuples(matrices(max_rows=40), codings()), max_size=4),
    assets=st.dictionaries(asset_names, st.binary(max_size=300), max_size=3),
    config=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_any_content_in_any_order_of_blocks(tmp_path: Path, tensors, assets, config, order) -> None:
    path = tmp_path / "any.cellmd"
    declared = [TensorDeclaration(f"t{i}", w.shape, coding) for i, (w, coding) in enumerate(tensors)]
    blocks = [(i, start) for i, (w, _) in enumerate(tensors) for start in range(0, len(w), 16)]
    order.shuffle(blocks)
    with ContainerWriter(path, tensors=declared, config=config, assets=assets) as writer:
        for i, start in blocks:
            w, coding = tensors[i]
            writer.write(f"t{i}", start, encode_block(w[start : start + 16], coding))
        writer.finish()
        assert path.stat().st_size == writer.n_bytes
    with Container.open(path) as container:
        container.verify()
        assert container.config == config
        assert {name: container.asset(name) for name in container.assets} == assets
        for i, (w, coding) in enumerate(tensors):
            assert np.array_equal(decode(container.tensors[f"t{i}"]), decode(encode("", w, coding)))


def test_tensors_outlive_the_container(path: Path) -> None:
    container = Container.open(path)
    name = "model.language_model.norm.weight"
    packed = container.tensors[name]
    container.close()
    container.close()
    assert np.array_equal(decode(packed), weights(name).astype(np.float16))
    assert not packed.data.flags.writeable
    with pytest.raises(ContainerError, match="closed"):
        container.asset("tokenizer.json")


def test_assets_used_where_they_lie(tmp_path: Path) -> None:
    """Compressible, but not compressed; a view of the mapped file that outlives the container; checked like others."""
    path, content = tmp_path / "x.cellmd", bytes(5000) + b"end"
    with ContainerWriter(path, tensors=[], config=CONFIG, assets={"table.bin": content, **ASSETS}) as writer:
        writer.finish()
    document, _ = split_v2(path.read_bytes())
    entry = document["assets"]["table.bin"]
    assert (entry["compression"], entry["nbytes"]) == ("none", len(content))
    container = Container.open(path)
    view = container.asset_view("table.bin")
    assert view.readonly
    assert isinstance(view.obj, mmap.mmap)
    assert container.asset_view("tokenizer.json") == container.asset("tokenizer.json")
    container.close()
    assert view == content
    with pytest.raises(ContainerError, match="closed"):
        container.asset_view("table.bin")
    damaged = bytearray(path.read_bytes())
    damaged[entry["offset"]] ^= 1
    path.write_bytes(damaged)
    with Container.open(path) as container, pytest.raises(CorruptError, match=r"table\.bin"):
        container.asset_view("table.bin")


def test_what_is_not_there(path: Path) -> None:
    with Container.open(path) as container:
        assert container.tensors.get("nothing") is None
        assert "nothing" not in container.tensors
        with pytest.raises(ContainerError, match=r"has no generation_config\.json; it holds tokenizer\.json, "):
            container.asset("generation_config.json")


def test_sizes_by_component(path: Path) -> None:
    with Container.open(path) as container:
        found = container.sizes_by_component()
    n_tensors = {name: size.n_tensors for name, size in found.items()}
    assert n_tensors == {"text": 4, "per_layer": 1, "vision": 1, "audio": 1}
    assert found["per_layer"].n_numbers == 6 * 33
    assert found["per_layer"].n_bytes == 6 * 17 + 6 * 2 * 2
    assert found["audio"].n_numbers == 1
    assert found["text"].n_bytes == sum(sizes(*TENSORS[name]).total for name in TENSORS if "language" in name)


def test_verify_reports_what_it_read_and_finds_a_flipped_bit_anywhere(path: Path) -> None:
    content = path.read_bytes()
    document, blobs = split_v2(content)
    read = []
    with Container.open(path) as container:
        container.verify(read.append)
    nbytes = [blob["nbytes"] for t in document["tensors"] for blob in t.values() if isinstance(blob, dict)]
    assert sum(read) == sum(nbytes) + sum(asset["nbytes"] for asset in document["assets"].values())
    first = len(content) - len(blobs)
    for position in range(first, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with Container.open(path) as container, pytest.raises(CorruptError):
            container.verify()


def test_a_folder_a_pipe_and_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("", "not a regular file"), ("pipe", "not a regular file"), ("none", "No such file")):
        with pytest.raises(ContainerError, match=reason) as caught:
            Container.open(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_opening_two_thousand_tensors_reads_the_header_alone(tmp_path: Path) -> None:
    """Memory grows with the header, not with the file: 64 MB of tensors here."""
    path = tmp_path / "many.cellmd"
    coding = Coding("i4", "tile16", 128, "i8")
    tensors = [TensorDeclaration(f"model.layers.{i}.weight", (256, 256), coding) for i in range(2000)]
    block = encode_block(np.ones((256, 256), np.float32), coding)
    with ContainerWriter(path, tensors=tensors, config={}) as writer:
        for tensor in tensors:
            writer.write(tensor.name, 0, block)
        writer.finish()
    header_bytes = len(json.dumps(split_v2(path.read_bytes())[0]))
    tracemalloc.start()
    with Container.open(path) as container:
        assert len(container.tensors) == 2000
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * header_bytes < path.stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how the file is mapped")
def test_a_table_is_mapped_for_lookups_and_nothing_else_is(tmp_path: Path) -> None:
    """Or each row read from the disk would bring a megabyte of neighbours."""
    path = tmp_path / "table.cellmd"
    codings = {"matrix": Coding("i4", "tile16", 128, "i8"), "table": Coding("i4", "row", 256, "i8")}
    tensors = [TensorDeclaration(name, (1024, 512), coding) for name, coding in codings.items()]
    with ContainerWriter(path, tensors=tensors, config={}) as writer:
        for tensor in tensors:
            writer.write(tensor.name, 0, encode_block(np.ones(tensor.shape, np.float32), tensor.coding))
        writer.finish()

    def random_access_bytes() -> int:
        """Bytes of the file's map that have the flag of MADV_RANDOM, "rr"."""
        maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        ours = [each for each in maps if str(path) in each and re.search(r"^VmFlags:.* rr\b", each, re.MULTILINE)]
        return sum(int(each[: each.index(" ")].split("-")[1], 16) - int(each.split("-")[0], 16) for each in ours)

    with Container.open(path) as container:
        assert container.tensors["matrix"].n_bytes > 0
        assert random_access_bytes() == 0
        table = container.tensors["table"]
        assert table.data.nbytes <= random_access_bytes() <= table.data.nbytes + 2 * mmap.PAGESIZE
