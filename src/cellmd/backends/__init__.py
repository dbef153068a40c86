"""Backends: what the operations of `ops` run on, and which one to take.

Each backend is a module of this package with a function `create(threads: int | None) -> Ops` that raises BackendError,
saying why, where it cannot run. It is imported when it is asked for, not before.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from cellmd.backends.ops import Ops
from cellmd.errors import BackendError

_MODULES = {"cpu": "cellmd.backends.cpu", "reference": "cellmd.backends.reference"}
"""Name and module, best first: "auto" takes the first that can run here."""

_NEEDS = {"cpu": "cellmd._native"}
"""A compiled module that a backend needs beside its own."""


def installed() -> tuple[str, ...]:
    """Names of the backends whose parts are installed, best first."""
    return tuple(
        name
        for name, module in _MODULES.items()
        if find_spec(module) is not None and (name not in _NEEDS or find_spec(_NEEDS[name]) is not None)
    )


def create(name: str = "auto", threads: int | None = None) -> Ops:
    """The backend called `name`, or the best that is installed for "auto". `threads` None: all processors.

    Raises BackendError listing what there is for an unknown name, or saying why a known one cannot run.
    """
    names = installed()
    if name == "auto":
        name = names[0]
    if name not in _MODULES:
        raise BackendError(f"backend {name!r} is unknown; installed here: {', '.join(names)}, or 'auto'")
    if name not in names:
        raise BackendError(f"backend {name!r} is not installed; installed here: {', '.join(names)}")
    backend: Ops = import_module(_MODULES[name]).create(threads)
    return backend
