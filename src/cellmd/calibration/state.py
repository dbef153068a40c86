"""What a calibration has finished, in a folder beside its output, so that it can go on after it was interrupted.

    manifest.json      the key of source, options and material, and how many stages are finished
    rounded-N.npz      the matrices that stage N rounded: codes, scales, row factors by name
    place-N.npz        where the two runs stand behind stage N; only the newest is kept

Stage 0 is what comes before the first layer, stage N layer N - 1. A file appears under its name when it is complete,
and the manifest last, so a killed calibration leaves what was finished before. A state of another source, other options
or other material, or one that is damaged, is of no use: it is removed, and the calibration begins anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cellmd.calibration.streams import Standing, Stream
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import PlannedTensor
from cellmd.errors import ContainerError
from cellmd.processors.features import ImageFeatures, Prompt
from cellmd.quant import PackedTensor
from cellmd.quant.feedback import DAMPING, DRIFT_SHARE
from cellmd.runtime.batch import Sequence as Running
from cellmd.runtime.batch import SoftTokens

_VERSION = 2
_MANIFEST = "manifest.json"
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged archive raises."""

_log = logging.getLogger(__name__)


def key_of(checkpoint: Checkpoint, plan: Sequence[PlannedTensor], prompts: Sequence[Prompt]) -> str:
    """SHA-256 of all that an outcome depends on. Weights are told by the sizes and times of their files."""
    from cellmd import __version__

    files = sorted({source.file.path for source in checkpoint.tensors.values()})
    facts = {
        "versions": [_VERSION, __version__, np.__version__],
        "constants": [DAMPING, DRIFT_SHARE],
        "source": checkpoint.fingerprint(),
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "codings": [[each.spec.name, str(each.coding)] for each in plan],
        "prompts": [_digest(prompt) for prompt in prompts],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _digest(prompt: Prompt) -> str:
    digest = hashlib.sha256(repr(prompt.token_ids).encode())
    for span in prompt.media:
        features = span.features
        values = features.patches if isinstance(features, ImageFeatures) else features.log_mel
        digest.update(repr((span.kind, span.start, values.shape)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


class State:
    """The state in one folder. finished: stages that need not be gone through again."""

    def __init__(self, folder: Path, key: str) -> None:
        """Raises ContainerError if the folder cannot be made."""
        self.folder = folder
        self._key = key
        self.finished = self._finished_before()
        if not self.finished:
            self.discard()
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise ContainerError(f"{folder}: cannot be made: {error.strerror or error}") from None

    def discard(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.finished = 0

    def begin_anew(self, reason: str) -> None:
        """Give up what was finished, with a message."""
        _log.warning("%s: %s; the calibration begins anew", self.folder, reason)
        self.discard()
        self.folder.mkdir()

    def save(
        self, rounded: Mapping[str, PackedTensor], runs: Sequence[Stream], sequences: Sequence[Running] = ()
    ) -> None:
        """One more stage is finished: what it rounded, and where the runs stand. sequences: with the soft tokens that
        the first stage made. Raises ContainerError if the disk refuses."""
        stage = self.finished
        arrays: dict[str, np.ndarray] = {}
        for name, packed in rounded.items():
            arrays[f"{name}/data"] = packed.data
            if packed.scales is not None:
                arrays[f"{name}/scales"] = packed.scales
            if packed.row_factors is not None:
                arrays[f"{name}/row_factors"] = packed.row_factors
        for piece, sequence in enumerate(sequences):
            for soft in sequence.soft:
                arrays[f"soft/{piece}/{soft.start}"] = np.asarray(soft.values)
        try:
            _write(self.folder / f"rounded-{stage}.npz", arrays)
            _write(self.folder / f"place-{stage}.npz", _place_arrays(runs))
            self.finished = stage + 1
            manifest = self.folder / f"{_MANIFEST}.part"
            manifest.write_text(json.dumps({"key": self._key, "finished": self.finished}))
            manifest.replace(self.folder / _MANIFEST)
            (self.folder / f"place-{stage - 1}.npz").unlink(missing_ok=True)
        except OSError as error:
            raise ContainerError(f"{self.folder}: cannot be written: {error.strerror or error}") from None

    def load(
        self, planned: Mapping[str, PlannedTensor], sequences: Sequence[Running]
    ) -> tuple[dict[str, PackedTensor], dict[str, np.ndarray]] | None:
        """What all finished stages rounded, and the arrays of the place behind the last; soft tokens go into the
        sequences. None, with a message, if the state is damaged, which begins it anew."""
        try:
            arrays: dict[str, np.ndarray] = {}
            for stage in range(self.finished):
                arrays |= _read(self.folder / f"rounded-{stage}.npz")
            place = _read(self.folder / f"place-{self.finished - 1}.npz")
            rounded = {
                name: _packed(planned[name], arrays)
                for name in sorted({key.rpartition("/")[0] for key in arrays if not key.startswith("soft/")})
            }
            for key in sorted(arrays, key=lambda key: [int(part) for part in key.split("/")[1:] if part.isdecimal()]):
                if key.startswith("soft/"):
                    _, piece, start = key.split("/")
                    sequences[int(piece)].soft.append(SoftTokens(int(start), len(arrays[key]), arrays[key]))
        except _DAMAGE as error:
            for sequence in sequences:
                sequence.soft.clear()
            self.begin_anew(f"what an interrupted calibration left is damaged ({error})")
            return None
        return rounded, place

    def _finished_before(self) -> int:
        if not self.folder.is_dir():
            return 0
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            key, finished = manifest["key"], manifest["finished"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # killed before its first stage was finished
        if key != self._key or type(finished) is not int or finished < 1:
            _log.warning(
                "%s: left by another conversion (source, options or material differ); the calibration begins anew",
                self.folder,
            )
            return 0
        return finished


def stand(runs: Sequence[Stream], place: Mapping[str, np.ndarray], n_pieces: int) -> None:
    """Put runs that have begun to where they stood when `place` was written."""
    for number, run in enumerate(runs):
        rows = [place[f"{number}/{piece}/rows"] for piece in range(n_pieces)]
        caches: list[dict[int, object]] = [{} for _ in range(n_pieces)]
        for key, values in place.items():
            which, piece, kind, *layer = key.split("/")
            if int(which) != number or kind != "keys":
                continue
            cache = run.new_cache(int(layer[0]), int(piece))
            cache.keys[...] = values
            cache.values[...] = place[f"{which}/{piece}/values/{layer[0]}"]
            caches[int(piece)][int(layer[0])] = cache
        run.stand(Standing(rows, caches))


def _place_arrays(runs: Sequence[Stream]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for number, run in enumerate(runs):
        at = run.standing()
        for piece, (rows, caches) in enumerate(zip(at.rows, at.caches, strict=True)):
            arrays[f"{number}/{piece}/rows"] = rows
            for layer, cache in caches.items():
                arrays[f"{number}/{piece}/keys/{layer}"] = cache.keys
                arrays[f"{number}/{piece}/values/{layer}"] = cache.values
    return arrays


def _packed(planned: PlannedTensor, arrays: Mapping[str, np.ndarray]) -> PackedTensor:
    """Raises ValueError for arrays that are not those of the planned tensor."""
    name, coding = planned.spec.name, planned.coding
    scales, factors = arrays.get(f"{name}/scales"), arrays.get(f"{name}/row_factors")
    packed = PackedTensor(name, planned.spec.shape, coding, arrays[f"{name}/data"], scales, factors)
    if packed.n_bytes != planned.sizes.total:
        raise ValueError(f"tensor {name!r} has {packed.n_bytes} bytes instead of {planned.sizes.total}")
    return packed


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its keyword options have other types
    part.replace(path)


def _read(path: Path) -> dict[str, np.ndarray]:
    """All of an archive: every checksum in it is compared."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
