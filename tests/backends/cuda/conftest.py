"""What is tested here is written in torch: without it, these modules cannot even be read. All are marked `reference`,
but for those of the choice of a backend."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from cellmd.backends.cuda import likely

collect_ignore = [] if find_spec("torch") else ["test_attention.py", "test_model.py", "test_running_ahead.py"]
if not likely():
    collect_ignore.append("test_on_gpu.py")


@pytest.fixture(autouse=True)
def _fresh_pass() -> None:
    """Not for every backend, as the tests of the operations are."""
