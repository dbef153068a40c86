"""Which backend is taken."""

from __future__ import annotations

import pytest

from cellmd.backends import create, installed
from cellmd.errors import BackendError


def test_reference_is_always_there() -> None:
    assert "reference" in installed()
    assert create("reference").name == "reference"


def test_auto_takes_the_best() -> None:
    assert create("auto").name == installed()[0]


def test_an_unknown_one_is_refused_with_what_there_is() -> None:
    with pytest.raises(BackendError, match=r"'cuda13' is unknown; installed here: .*reference"):
        create("cuda13")
