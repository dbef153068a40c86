"""Pictures from files and arrays to 8-bit RGB.

Orientation follows EXIF. Transparency is laid over white, as the reference does; a grey picture of 16 bits a sample is
scaled to 8 (Pillow's own conversion, which the reference uses, cuts every value above 255 and leaves a white page).
Animations give their first frame.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cellmd.errors import MediaDecodeError, MediaError, MediaLimitError
from cellmd.processors.sources import MediaLimits, media_name, open_medium

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Formats that Pillow decodes itself. EPS is not among them, for which it would run another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def decode_image(medium: Any, limits: MediaLimits | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 RGB (H, W, 3).

    medium: path, bytes, binary file object, PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
    uint16 (full range) or float (0..1). Raises MediaDecodeError, MediaLimitError.
    """
    limits = limits or MediaLimits()
    name = media_name(medium)
    if isinstance(medium, Image.Image):
        return _pixels(name, medium, limits)
    if isinstance(medium, np.ndarray):
        return _pixels(name, _image_of_array(name, medium), limits)
    with open_medium(medium, limits) as source:
        try:
            image = Image.open(source.file, formats=_formats())
        except UnidentifiedImageError:
            raise MediaDecodeError(f"{name}: not a picture of a known kind ({', '.join(_formats()).lower()})") from None
        except Image.DecompressionBombError as error:
            raise MediaLimitError(f"{name}: {error}") from None
        except Exception as error:  # parsers of hostile input raise whatever they stumble over
            raise MediaDecodeError(f"{name}: the picture is broken ({_reason(error)})") from error
        with image:
            return _pixels(name, image, limits)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this build of Pillow has."""
    Image.init()
    return tuple(kind for kind in _FORMATS if kind in Image.OPEN)


def _pixels(name: str, image: Image.Image, limits: MediaLimits) -> NDArray[np.uint8]:
    """Decode, orient and convert. The header's size is checked before any pixel is."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise MediaLimitError(f"{name}: {width} x {height} pixels are more than the limit of {limits.max_pixels:,}")
    if width == 0 or height == 0:
        raise MediaDecodeError(f"{name}: the picture has no pixels ({width} x {height})")
    try:
        image.load()
        return np.asarray(_to_rgb(name, ImageOps.exif_transpose(image)))
    except MediaError:
        raise
    except Exception as error:  # see above
        raise MediaDecodeError(f"{name}: the picture is broken or cut short ({_reason(error)})") from error


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise MediaDecodeError(f"{name}: a picture of floating-point samples; convert it to 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(_narrow(wide.clip(0, 0xFFFF))).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _narrow(wide: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit samples to 8 bits, rounded: 65535 / 255 = 257."""
    return ((wide.astype(np.int64) + 128) // 257).astype(np.uint8)


def _image_of_array(name: str, array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise MediaDecodeError(f"{name}: an array of shape {array.shape} is no picture; give (H, W), (H, W, 3 or 4)")
    if array.dtype == np.uint16:
        array = _narrow(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        if array.size and not (np.isfinite(array).all() and array.min() >= 0.0 and array.max() <= 1.0):
            raise MediaDecodeError(f"{name}: a picture of floats must lie within 0..1")
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise MediaDecodeError(f"{name}: an array of {array.dtype} is no picture; give uint8, uint16 or floats 0..1")
    if array.size == 0:
        raise MediaDecodeError(f"{name}: the picture has no pixels {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
