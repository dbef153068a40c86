"""What processors hand to models: media as arrays, prompts as ids with places for soft tokens.

Dataclasses only, so that `models/` and `runtime/` can name them without loading a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ImageFeatures:
    """One picture or one film frame, cut into patches.

    patches: float32 (n_patches, 3 * patch_size^2), values 0..1, row-major over the grid, each patch in the order
        (row, column, channel).
    grid_height, grid_width: patches down and across, both multiples of the pooling size.
    n_soft_tokens: n_patches / pooling^2.
    """

    patches: Any
    grid_height: int
    grid_width: int
    n_soft_tokens: int


@dataclass(frozen=True)
class AudioFeatures:
    """One sound of at most 30 s: log-mel frames.

    log_mel: float32 (n_frames, 128), valid frames alone (no padding).
    n_soft_tokens: frames left by two stride-2 convolutions.
    duration_s: seconds of sound.
    """

    log_mel: Any
    n_soft_tokens: int
    duration_s: float


@dataclass(frozen=True)
class VideoFeatures:
    """A film: some of its frames, each a picture, and when each is shown in seconds from the start."""

    frames: tuple[ImageFeatures, ...]
    times_s: tuple[float, ...]


MediaKind = Literal["image", "audio", "video"]


@dataclass(frozen=True)
class MediaSpan:
    """A run of placeholders in a prompt and the features that fill it: positions start .. start + n_soft_tokens."""

    kind: MediaKind
    start: int
    features: ImageFeatures | AudioFeatures


@dataclass(frozen=True)
class Prompt:
    """Token ids ready to run: placeholders expanded, each run with the features that fill it, in order."""

    token_ids: tuple[int, ...]
    media: tuple[MediaSpan, ...] = ()
    features_ms: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_ids)
