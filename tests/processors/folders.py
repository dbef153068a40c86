"""Where the tests find tokenizers: a small one always, E2B's own (15 MB, not part of the repository) where it lies.

E2B's folder is looked for in the environment variable CELLMD_E2B, then at ../shared/e2b beside the checkout.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from cellmd.config import ModelConfig
from cellmd.convert.assets import stored_assets
from cellmd.processors.prompt import Processor
from checkpoints import checkpoint_config, write_assets

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
TEMPLATE = (DATA / "chat_template.jinja").read_text()
_small = TemporaryDirectory(prefix="cellmd-small-tokenizer-")


def _e2b() -> Path | None:
    folder = Path(os.environ.get("CELLMD_E2B") or ROOT.parent / "shared" / "e2b")
    return folder if (folder / "tokenizer.json").is_file() else None


@cache
def small_folder() -> Path:
    folder = Path(_small.name)
    write_assets(folder, checkpoint_config())
    return folder


E2B = _e2b()
TOKENIZERS = ["small"] + (["e2b"] if E2B else [])


def folder_of(name: str) -> Path:
    return E2B if name == "e2b" and E2B else small_folder()


@cache
def processor_of(name: str) -> Processor:
    """A Processor with the named tokenizer, compiled as a file holds it, E2B's template and media front ends."""
    config = checkpoint_config() if name == "small" else json.loads((DATA / "e2b_config.json").read_text())
    assets = {
        "tokenizer.json": (folder_of(name) / "tokenizer.json").read_bytes(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    return Processor.from_assets(stored_assets(assets), ModelConfig.from_dict(config))
