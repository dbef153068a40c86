from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference

KB = 1 << 10


@pytest.mark.parametrize(("capability", "shared_memory"), [(86, 99 * KB), (90, 227 * KB)])
def test_kernels_compile_and_fit(tmp_path: Path, capability: int, shared_memory: int) -> None:
    script = Path(__file__).parents[3] / "kernel_compilation.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(script), str(capability), str(shared_memory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
