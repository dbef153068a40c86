"""A small converted model and one file of each medium, made once for all tests of the shell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cellmd
from checkpoints import make_checkpoint
from processors.media_files import film_file, sound_file, tone


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the checkpoint `tiny`, its file `tiny.cellmd`, and sound.wav, picture.jpg, film.mp4."""
    folder = tmp_path_factory.mktemp("cli")
    cellmd.convert(make_checkpoint(folder / "tiny"), folder / "tiny.cellmd")
    (folder / "sound.wav").write_bytes(sound_file("wav", tone(0.5, 16_000)[None], 16_000))
    (folder / "film.mp4").write_bytes(film_file("mp4", n_frames=4))
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(folder / "picture.jpg")
    return folder


@pytest.fixture
def model(folder: Path) -> str:
    return str(folder / "tiny.cellmd")
