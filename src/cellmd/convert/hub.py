"""Fetches a checkpoint from the hub by its id, when the optional `huggingface_hub` is installed."""

from __future__ import annotations

import re
from pathlib import Path

from cellmd.errors import CheckpointError

NEEDED_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.*",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(source: str) -> Path:
    """The local folder of a hub id's files, fetched (or found in the hub's cache). Raises CheckpointError."""
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{source}: no such folder; to fetch it from the hub, install huggingface_hub: pip install 'cellmd[hub]'"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=list(NEEDED_FILES)))
    except Exception as error:  # network, authorisation, gating, disk: the hub library has a class for each
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{source}: no such folder, and fetching it from the hub failed: {reason[0]}") from error
