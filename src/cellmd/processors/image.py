"""Pictures to patches: resize within a budget of soft tokens, cut, scale to 0..1.

The vision tower turns every pooling x pooling block of patches into one soft token, so both sides become multiples of
patch_size * pooling pixels and the aspect ratio is kept as nearly as that allows. Pixels are resampled by Pillow's
bicubic filter on 8-bit samples and then scaled, which is the reference's Pillow path to the last bit; its torchvision
path rounds a resampled pixel differently now and then, by one step of 255.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cellmd.errors import ArgumentError
from cellmd.processors.config import SOFT_TOKEN_BUDGETS, ImageFrontEnd
from cellmd.processors.features import ImageFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray


def with_budget(config: ImageFrontEnd, max_soft_tokens: int | None) -> ImageFrontEnd:
    """The front end with another budget; None keeps its own. Raises ArgumentError for one the model does not know."""
    if max_soft_tokens is None:
        return config
    if max_soft_tokens not in SOFT_TOKEN_BUDGETS:
        known = ", ".join(map(str, SOFT_TOKEN_BUDGETS))
        raise ArgumentError(f"image_tokens must be one of {known}; found {max_soft_tokens!r}")
    return replace(config, max_soft_tokens=max_soft_tokens)


def target_size(height: int, width: int, config: ImageFrontEnd) -> tuple[int, int]:
    """Height and width in pixels that a picture is resized to.

    The largest multiples of side_multiple within the ideal sides sqrt(budget area * aspect ratio); a side that would
    vanish becomes one multiple, and the other then as many as the (whole) aspect ratio and the budget give.
    """
    multiple = config.side_multiple
    factor = math.sqrt(config.max_soft_tokens * multiple * multiple / (height * width))
    rows = math.floor(factor * height / multiple)
    columns = math.floor(factor * width / multiple)
    if rows == 0:
        rows, columns = 1, min(width // height, config.max_soft_tokens)
    elif columns == 0:
        rows, columns = min(height // width, config.max_soft_tokens), 1
    return rows * multiple, columns * multiple


def image_features(pixels: NDArray[np.uint8], config: ImageFrontEnd) -> ImageFeatures:
    """Patches of a picture. pixels: uint8 RGB (H, W, 3). See ImageFeatures for their layout."""
    height, width = target_size(pixels.shape[0], pixels.shape[1], config)
    if (height, width) != pixels.shape[:2]:
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized)
    size = config.patch_size
    grid_height, grid_width = height // size, width // size
    blocks = pixels.reshape(grid_height, size, grid_width, size, 3).transpose(0, 2, 1, 3, 4)
    patches = blocks.reshape(grid_height * grid_width, size * size * 3)
    # 256 values: scaling them once in double and looking them up rounds as scaling every pixel would.
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    return ImageFeatures(
        patches=scaled[patches],
        grid_height=grid_height,
        grid_width=grid_width,
        n_soft_tokens=grid_height * grid_width // config.pooling**2,
    )
