"""The recipe's own forward pass is written in torch, as transformers is: its tests, all marked `reference`, cannot even be
read without it."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_forward.py"]
