"""The recipe's forward pass is written in torch, as the reference implementation is: its tests, all of them comparisons
marked `reference`, cannot even be imported without it."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_forward.py"]
