"""A fuzz target: any bytes, opened and used as a .cellmd file, end in an error of cellmd's or in none.

    python tests/fuzz/container_fuzz.py tests/container/attacks          needs atheris (pip install atheris)

Without it, `container_fuzz_test.py` runs the same target on the committed files and on changed copies of true ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from cellmd.errors import CellmdError
from container.files import touch_everything

_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_PATH = Path(_FOLDER.name) / "fuzzed.cellmd"


def target(content: bytes) -> type[CellmdError] | None:
    """Returns the error that the content ended in. Anything but a CellmdError is a finding and passes through."""
    _PATH.write_bytes(content)
    try:
        touch_everything(_PATH)
    except CellmdError as error:
        str(error).encode("ascii")
        return type(error)
    return None


def main() -> None:
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
