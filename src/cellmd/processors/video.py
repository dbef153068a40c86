"""Films to features: a few frames as pictures of a small budget, when each is shown, and the film's sound if asked."""

from __future__ import annotations

from typing import Any

from cellmd.errors import ArgumentError
from cellmd.processors.config import VideoFrontEnd
from cellmd.processors.decode_video import sample_film
from cellmd.processors.features import VideoFeatures
from cellmd.processors.image import image_features
from cellmd.processors.sources import MediaLimits


def video_features(
    medium: Any,
    config: VideoFrontEnd,
    *,
    n_frames: int | None = None,
    fps: float | None = None,
    limits: MediaLimits | None = None,
) -> VideoFeatures:
    """Patches of frames spread evenly over a film (see `sample_film` for what a film may be).

    n_frames: how many (default: the model's, 32). fps: so many a second instead. Raises MediaDecodeError,
    MediaLimitError, ArgumentError.
    """
    if n_frames is not None and fps is not None:
        raise ArgumentError("a number of film frames and frames a second exclude each other; give one")
    wanted = config.n_frames if n_frames is None else n_frames
    frames = []
    times = []
    for frame in sample_film(medium, n_frames=wanted, fps=fps, limits=limits):
        frames.append(image_features(frame.pixels, config.frame))
        times.append(frame.time_s)
    return VideoFeatures(frames=tuple(frames), times_s=tuple(times))


def timestamp(seconds: float) -> str:
    """mm:ss, as the model was taught to read the times of frames; minutes go on beyond 59."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
