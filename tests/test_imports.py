"""What `import cellmd` costs and offers."""

from __future__ import annotations

import json
import subprocess
import sys

import cellmd
from cellmd import errors

IMPORT_SECONDS = 0.15


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_quick_and_light() -> None:
    code = (
        "import sys, time; before = time.perf_counter(); import cellmd; "
        "print(time.perf_counter() - before); print(*sys.modules)"
    )
    runs = [run(code).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < IMPORT_SECONDS
    loaded = set(runs[0][1].split())
    assert not loaded & {"numpy", "torch", "PIL", "av", "jinja2", "tokenizers", "tqdm", "cellmd.api", "cellmd._native"}


def test_everything_in_all_is_there_and_documented() -> None:
    for name in cellmd.__all__:
        value = getattr(cellmd, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), name
    assert dir(cellmd) == cellmd.__all__ == sorted(cellmd.__all__)


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert tree <= set(cellmd.__all__)


def test_convert_stays_a_function_whatever_is_imported() -> None:
    """The subpackage of the same name must not take its place."""
    code = (
        "import cellmd, json; first = cellmd.convert; from cellmd.convert.recipe import find_recipe; "
        "import cellmd.convert.plan; cellmd.load; print(json.dumps([callable(first), first is cellmd.convert]))"
    )
    assert json.loads(run(code)) == [True, True]
    code = "import cellmd.convert.plan, cellmd; print(callable(cellmd.convert))"
    assert run(code).strip() == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(cellmd, "no_such_name")
