"""Backends: what the operations of `ops` run on, and which one to take.

Each backend is a module of this package with a function `create(threads: int | None) -> Ops` that raises BackendError,
saying why, where it cannot run. It is imported when it is asked for, not before.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec

from cellmd.backends.ops import Ops
from cellmd.errors import BackendError

_MODULES = {"cuda": "cellmd.backends.cuda", "cpu": "cellmd.backends.cpu", "reference": "cellmd.backends.reference"}
"""Name and module, best first: "auto" takes the first that can run here."""

_NEEDS = {"cpu": "cellmd._native"}
"""A compiled module that a backend needs beside its own."""

_log = logging.getLogger(__name__)


def installed() -> tuple[str, ...]:
    """Names of the backends whose parts are installed, best first; "cuda" where a GPU seems to be here too."""
    return tuple(name for name in _MODULES if _likely(name))


def create(name: str = "auto", threads: int | None = None, kv_cache: str | None = None) -> Ops:
    """The backend called `name`, or for "auto" the best that can run here; if that is not the best of those installed,
    a warning says why.

    kv_cache: how keys and values are kept, for backends that leave the choice (`cpu`: "f16", "f32", "i8"); None for the
    backend's own way.
    Raises BackendError listing what there is for an unknown name, or saying why a known one cannot run.
    """
    names = installed()
    if name == "auto":
        return _best(names, threads, kv_cache)
    if name not in _MODULES:
        raise BackendError(f"backend {name!r} is unknown; installed here: {', '.join(names)}, or 'auto'")
    if name not in names and name != "cuda":  # which says best itself what is missing
        raise BackendError(f"backend {name!r} is not installed; installed here: {', '.join(names)}")
    return _create(name, threads, kv_cache)


def _best(names: tuple[str, ...], threads: int | None, kv_cache: str | None) -> Ops:
    *others, last = names
    for name, following in zip(others, names[1:], strict=True):
        try:
            return _create(name, threads, kv_cache)
        except BackendError as error:
            _log.warning("%s; going on with backend %r", error, following)
    return _create(last, threads, kv_cache)


def _create(name: str, threads: int | None, kv_cache: str | None) -> Ops:
    module = import_module(_MODULES[name])
    known = getattr(module, "KV_CACHES", ())
    if kv_cache is not None and kv_cache not in known:
        ways = f"as {', '.join(known)}" if known else "in one way only"
        raise BackendError(f"backend {name!r} keeps keys and values {ways}; {kv_cache!r} was asked for")
    backend: Ops = module.create(threads) if kv_cache is None else module.create(threads, kv_cache)
    return backend


def _likely(name: str) -> bool:
    if name == "cuda":
        return bool(import_module(_MODULES[name]).likely())
    return find_spec(_MODULES[name]) is not None and (name not in _NEEDS or find_spec(_NEEDS[name]) is not None)
