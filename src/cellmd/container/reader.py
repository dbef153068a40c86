"""Opening a .cellmd file: the header is read and checked, the rest is mapped and read as it is used."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from cellmd.container import document, legacy
from cellmd.container import header as headers
from cellmd.container.header import AssetEntry, Blob, Header, TensorEntry
from cellmd.container.layout import (
    LEGACY_VERSION,
    MAGIC,
    MAX_ASSET_BYTES,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    VERSION,
)
from cellmd.container.pages import advise_reader, bring_in, forget
from cellmd.errors import (
    ContainerError,
    CorruptError,
    HeaderError,
    NotCellmdError,
    TruncatedError,
    UnsupportedModelError,
)
from cellmd.quant import PackedTensor
from cellmd.quant.floats import STORED
from cellmd.quant.tensor import FilePlace, OpenFile

_READ_BYTES = 4 << 20

_SMALL_BYTES = 64 << 10
"""Float tensors up to this size are copied when they are asked for."""


class Container:
    """One open file. Made by `Container.open`; a context manager.

    path, version; config: the source's config.json. tensors: name -> PackedTensor, views of the mapped file, made and
    checked at first use. assets: names of the small files within, such as the tokenizer. provenance, quality: what the
    conversion noted of its source and of its errors; both empty in version 1.
    """

    def __init__(self, path: Path, file: BinaryIO, mapped: mmap.mmap, header: Header, header_end: int) -> None:
        self.path = path
        self.version = header.version
        self.config = header.config
        self.provenance = header.provenance
        self.quality = header.quality
        self.file_bytes = len(mapped)
        self.header_bytes = header_end
        self.tensors: Mapping[str, PackedTensor] = _Tensors(path, header, mapped, OpenFile(file.fileno()))
        self._header = header
        self._file = file
        self._mapped: mmap.mmap | None = mapped
        beside = legacy.tokenizer_beside(path) if header.version == LEGACY_VERSION else None
        self._tokenizer_beside = beside if beside is not None and beside.is_file() else None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Container:
        """Raises a ContainerError, or one of its kinds, that names the file and says what is wrong with it;
        UnsupportedModelError for a version 1 file without the source's configuration."""
        path = Path(path)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before opening: a pipe would block
                raise ContainerError(f"{path}: not a regular file")
            file = path.open("rb")
        except OSError as error:
            raise ContainerError(f"{path}: {error.strerror or error}") from None
        try:
            return cls._read(path, file)
        except (ContainerError, UnsupportedModelError) as error:
            file.close()
            raise type(error)(f"{path}: {error}") from None
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, path: Path, file: BinaryIO) -> Container:
        prefix = file.read(PREFIX_BYTES)
        if not MAGIC.startswith(prefix[: len(MAGIC)]):
            raise NotCellmdError(f"not a .cellmd file: it starts with {prefix[: len(MAGIC)]!a}, not {MAGIC!a}")
        if len(prefix) < PREFIX_BYTES:
            raise TruncatedError(f"the file ends after {len(prefix)} bytes; copy or convert it again")
        version, header_bytes = struct.unpack("<BI", prefix[len(MAGIC) :])
        if version not in (LEGACY_VERSION, VERSION):
            raise NotCellmdError(f"version {version} of the format; this release reads {LEGACY_VERSION} and {VERSION}")
        if header_bytes > MAX_HEADER_BYTES:
            raise HeaderError(f"a header of {header_bytes} bytes, more than the {MAX_HEADER_BYTES} allowed")
        header_end = PREFIX_BYTES + header_bytes
        with_header = file.read(header_bytes)
        if len(with_header) < header_bytes:
            raise TruncatedError(f"the file ends within its header of {header_bytes} bytes; copy or convert it again")
        parsed = document.parse(with_header)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if version == LEGACY_VERSION:
            header = legacy.read(parsed)
            legacy.check_ranges(header, header_end, len(mapped))
        else:
            header = headers.read(parsed)
            headers.check_ranges(header, header_end, len(mapped))
        return cls(path, file, mapped, header, header_end)

    @property
    def identity(self) -> str:
        """The same for files with the same content, and for no others: a digest of the header, which has the checksums
        of all the rest. Version 1 has none: there also of the file's time."""
        status = os.fstat(self._file.fileno())
        self._file.seek(0)
        digest = hashlib.sha256(self._file.read(self.header_bytes))
        digest.update(str(status.st_size if self.version != LEGACY_VERSION else status).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Release the file. Tensors already handed out stay readable: the mapping goes with the last of them."""
        self._file.close()
        self._mapped = None
        self.tensors = {}

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the assets. A version 1 file has tokenizer.json if STEM.tokenizer.json lies beside it."""
        return tuple(self._header.assets) or ((legacy.TOKENIZER,) if self._tokenizer_beside else ())

    def asset(self, name: str) -> bytes:
        """The content of an asset, its checksum compared. Raises ContainerError if there is none of this name, and
        CorruptError if it is damaged."""
        entry = self._header.assets.get(name)
        if entry is not None:
            return _content(entry, self._blob_bytes(entry.blob), self.path)
        if name == legacy.TOKENIZER and self._tokenizer_beside is not None:
            return _bounded(self._tokenizer_beside)
        raise ContainerError(f"{self.path}: has no {name}; it holds {', '.join(self.assets) or 'no assets'}")

    def asset_view(self, name: str) -> memoryview:
        """The same as `asset`, without a copy if it is stored uncompressed: then a view of the mapped file."""
        entry = self._header.assets.get(name)
        if entry is None or entry.compression != "none" or self._mapped is None:
            return memoryview(self.asset(name))
        digest = hashlib.sha256()
        for piece in self._pieces(entry.blob.offset, entry.blob.offset + entry.blob.nbytes):
            digest.update(piece)
        _compare(entry, digest.hexdigest(), self.path)
        return memoryview(self._mapped)[entry.blob.offset : entry.blob.offset + entry.blob.nbytes]

    def verify(self, progress: Callable[[int], None] | None = None) -> int:
        """Read the whole file from the disk and compare every checksum; padding must be zero and scales finite. The
        system's cache holds it afterwards as a decoding step reads it fastest (`pages`).

        progress: called with the number of bytes read since the last call. Returns how many checksums were compared,
        which is 0 for version 1: it has none. Raises CorruptError naming the tensor or asset.
        """
        compared = 0
        end = self.header_bytes
        mapped = self._opened()
        forget(self._file.fileno())
        every_step = set(_blobs_of_every_step(self._header))
        for what, blob in sorted(self._header.blobs(), key=lambda item: item[1].offset):
            if blob in every_step:
                bring_in(mapped, blob.offset, blob.offset + blob.nbytes)
            if self.version != LEGACY_VERSION:
                self._check_padding(end, blob.offset)
            digest = hashlib.sha256()
            for piece in self._pieces(blob.offset, blob.offset + blob.nbytes):
                digest.update(piece)
                if progress is not None:
                    progress(len(piece))
            if blob.sha256 is not None:
                if digest.hexdigest() != blob.sha256:
                    raise CorruptError(f"{self.path}: {what} is damaged: its SHA-256 differs; copy or convert it again")
                compared += 1
            end = blob.offset + blob.nbytes
        for name in self.assets:
            self.asset(name)
        for name in self.tensors:
            self.tensors[name]  # building it checks its scales
        return compared

    def sizes_by_component(self) -> dict[str, ComponentSize]:
        """Stored sizes of "text", of its part "per_layer" (the table of per-layer embeddings), "vision" and "audio"."""
        result = {component: ComponentSize() for component in ("text", "per_layer", "vision", "audio")}
        for name, entry in self._header.tensors.items():
            size = ComponentSize(
                n_tensors=1,
                n_numbers=int(np.prod(entry.shape, dtype=object)),
                n_bytes=sum(blob.nbytes for blob in entry.blobs.values()),
            )
            for component in _components(name):
                result[component] += size
        return result

    def _opened(self) -> mmap.mmap:
        if self._mapped is None:
            raise ContainerError(f"{self.path}: the file was closed")
        return self._mapped

    def _blob_bytes(self, blob: Blob) -> bytes:
        return b"".join(self._pieces(blob.offset, blob.offset + blob.nbytes))

    def _pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes start .. stop by reading, not through the map: pages read once would count as memory in use."""
        self._opened()
        for offset in range(start, stop, _READ_BYTES):
            yield os.pread(self._file.fileno(), min(_READ_BYTES, stop - offset), offset)

    def _check_padding(self, start: int, stop: int) -> None:
        if any(any(piece) for piece in self._pieces(start, stop)):
            raise CorruptError(f"{self.path}: the padding from byte {start} to {stop} is not zero")


@dataclass(frozen=True)
class ComponentSize:
    """n_numbers: numbers of the tensors without padding. n_bytes: of all their blobs."""

    n_tensors: int = 0
    n_numbers: int = 0
    n_bytes: int = 0

    def __add__(self, other: ComponentSize) -> ComponentSize:
        return ComponentSize(
            self.n_tensors + other.n_tensors, self.n_numbers + other.n_numbers, self.n_bytes + other.n_bytes
        )


def _components(tensor_name: str) -> tuple[str, ...]:
    if tensor_name.startswith(("model.vision_tower.", "model.embed_vision.")):
        return ("vision",)
    if tensor_name.startswith(("model.audio_tower.", "model.embed_audio.")):
        return ("audio",)
    return ("text", "per_layer") if "embed_tokens_per_layer." in tensor_name else ("text",)


def _looked_up(entry: TensorEntry, version: int) -> bool:
    """In version 2 `row` means so; in version 1 every matrix lies in rows, and only one table is looked up."""
    in_rows = entry.coding.quantised and entry.coding.layout == "row"
    return in_rows and (version != LEGACY_VERSION or "per_layer" in _components(entry.name))


def _read_every_step(entry: TensorEntry, version: int) -> bool:
    return "text" in _components(entry.name) and not _looked_up(entry, version)


def _blobs_of_every_step(header: Header) -> Iterator[Blob]:
    for entry in header.tensors.values():
        if _read_every_step(entry, header.version):
            yield from entry.blobs.values()


class _Tensors(Mapping[str, PackedTensor]):
    """Tensors by name, built at first use. What is checked then is read, not touched through the map: a page that is
    touched may be a large one, and the towers of a model that only writes text are to stay out of memory."""

    def __init__(self, path: Path, header: Header, mapped: mmap.mmap, file: OpenFile) -> None:
        self._path = path
        self._version = header.version
        self._entries = header.tensors
        self._mapped = mapped
        self._file = file
        self._content = np.frombuffer(mapped, np.uint8)
        self._built: dict[str, PackedTensor] = {}
        advise_reader(mapped, [(blob.offset, blob.offset + blob.nbytes) for blob in _blobs_of_every_step(header)])

    def __getitem__(self, name: str) -> PackedTensor:
        built = self._built.get(name)
        if built is None:
            built = self._built[name] = self._build(self._entries[name])
        return built

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _build(self, entry: TensorEntry) -> PackedTensor:
        views = {part: self._content[blob.offset : blob.offset + blob.nbytes] for part, blob in entry.blobs.items()}
        data, scales, factors, place = views["data"], views.get("scales"), views.get("row_factors"), None
        if _looked_up(entry, self._version):
            self._expect_lookups(entry.blobs["data"])
            place = FilePlace(self._file, entry.blobs["data"].offset)
        elif not entry.coding.quantised and data.nbytes <= _SMALL_BYTES:
            data = self._read(entry, "data")
        scale_dtype = entry.coding.scale_dtype
        if scales is not None:
            scales = scales.view(STORED[scale_dtype or "f16"])
            if scale_dtype != "i8" and not _all_finite(self._read(entry, "scales"), scale_dtype):
                raise CorruptError(f"{self._path}: tensor {entry.name!r} has scales that are not finite numbers")
        if factors is not None:
            factors = factors.view(STORED["f32"])
            read = self._read(entry, "row_factors").view(STORED["f32"])
            if not (np.isfinite(read).all() and (read >= 0).all()):
                raise CorruptError(
                    f"{self._path}: tensor {entry.name!r} has row factors that are negative or not finite"
                )
        return PackedTensor(entry.name, entry.shape, entry.coding, data, scales, factors, place)

    def _read(self, entry: TensorEntry, part: str) -> np.ndarray:
        blob = entry.blobs[part]
        if _read_every_step(entry, self._version):
            bring_in(self._mapped, blob.offset, blob.offset + blob.nbytes)
        content = os.pread(self._file.descriptor, blob.nbytes, blob.offset)
        if len(content) != blob.nbytes:
            raise TruncatedError(f"{self._path}: the file has become shorter since it was opened; copy it again")
        return np.frombuffer(content, np.uint8)

    def _expect_lookups(self, blob: Blob) -> None:
        """Tell the system that a table is read a row here and there: without this, each row read from the disk would
        bring its neighbourhood along."""
        if hasattr(mmap, "MADV_RANDOM"):
            start = blob.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_RANDOM, start, blob.offset + blob.nbytes - start)


def _all_finite(scales: np.ndarray, dtype: str | None) -> bool:
    """Of the bytes of float scales."""
    if dtype == "f32":
        return bool(np.isfinite(scales.view(np.float32)).all())
    exponent = np.uint16(0x7F80 if dtype == "bf16" else 0x7C00)
    return not bool(((scales.view(np.uint16) & exponent) == exponent).any())


def _content(entry: AssetEntry, stored: bytes, path: Path) -> bytes:
    """Decompressed within its stated size, which was checked against the limit when the header was read."""
    _compare(entry, hashlib.sha256(stored).hexdigest(), path)
    if entry.compression == "none":
        return stored
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(stored, entry.size + 1)
    except zlib.error as error:
        raise CorruptError(f"{path}: asset {entry.name!r} cannot be decompressed ({error})") from None
    if len(content) != entry.size or not stream.eof or stream.unused_data:
        raise CorruptError(f"{path}: asset {entry.name!r} does not decompress to its stated {entry.size} bytes")
    return content


def _compare(entry: AssetEntry, digest: str, path: Path) -> None:
    if digest != entry.blob.sha256:
        raise CorruptError(f"{path}: asset {entry.name!r} is damaged: its SHA-256 differs; copy or convert it again")


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_ASSET_BYTES + 1)
    if len(content) > MAX_ASSET_BYTES:
        raise ContainerError(f"{path}: larger than the {MAX_ASSET_BYTES} bytes allowed")
    return content
