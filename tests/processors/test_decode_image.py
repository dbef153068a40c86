"""Pictures of every kind become the RGB that a viewer shows; broken and oversized ones end in clear errors."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellmd.errors import MediaDecodeError, MediaError, MediaLimitError
from cellmd.processors.decode_image import decode_image
from cellmd.processors.sources import MediaLimits
from processors.media_files import outcome


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(gradient())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_lossless_kinds_give_back_the_pixels(kind: str) -> None:
    data = saved(RGB, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data), gradient())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_kinds_come_near(kind: str) -> None:
    pixels = decode_image(saved(RGB, kind, quality=95))
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - gradient()).mean() < 4


def test_gif_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = saved(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(data), np.full((8, 8, 3), (255, 0, 0)))


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode_image(saved(RGB, kind, exif=exif))
    plain = decode_image(saved(RGB, kind))
    np.testing.assert_array_equal(turned, UPRIGHT[orientation](plain))


def test_transparency_is_laid_over_white() -> None:
    image = np.zeros((1, 3, 4), np.uint8)
    image[0, :, 3] = 0, 128, 255
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(image), "PNG"))[0, :, 0], [255, 127, 0])
    np.testing.assert_array_equal(decode_image(image)[0, :, 0], [255, 127, 0])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    data = saved(palette, "PNG", transparency=0)
    np.testing.assert_array_equal(decode_image(data), [[[255, 255, 255], [40, 50, 60]]])


def test_grey_palette_and_two_colours() -> None:
    grey = gradient()[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(grey), "PNG")), expected)
    few = Image.fromarray(grey).quantize(8)
    np.testing.assert_array_equal(decode_image(saved(few, "PNG")), np.asarray(few.convert("RGB")))
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(decode_image(saved(bits, "PNG")))) == {0, 255}


def test_grey_of_16_bits_is_scaled() -> None:
    wide = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(wide), "PNG"))[:, :, 1], expected)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(wide), "TIFF"))[:, :, 1], expected)
    np.testing.assert_array_equal(decode_image(wide)[:, :, 1], expected)


def test_cmyk() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    pixels = decode_image(saved(ink, "JPEG", quality=100))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


def test_every_form_of_input(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    RGB.save(path)
    with path.open("rb") as file:
        media = [
            path,
            str(path),
            path.as_uri(),
            path.read_bytes(),
            memoryview(path.read_bytes()),
            file,
            RGB,
            gradient(),
        ]
        for medium in media:
            np.testing.assert_array_equal(decode_image(medium), gradient())
        np.testing.assert_array_equal(decode_image(file), gradient())  # a file can be read again
    np.testing.assert_array_equal(decode_image(gradient() / 255.0), gradient())
    np.testing.assert_array_equal(decode_image(gradient().astype(np.float32) / np.float32(255)), gradient())
    np.testing.assert_array_equal(decode_image(gradient()[:, :, :1])[:, :, 2], gradient()[:, :, 0])


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that claim a large picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 60_000, 2**31 - 1])
def test_large_pictures_are_refused_by_their_header(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(MediaLimitError, match="<bytes>"):
            decode_image(png_of_size(side, side))


def test_limits_are_settable(tmp_path: Path) -> None:
    with pytest.raises(MediaLimitError, match="60 x 40"):
        decode_image(RGB, MediaLimits(max_pixels=2399))
    assert decode_image(RGB, MediaLimits(max_pixels=2400)).shape == (40, 60, 3)
    path = tmp_path / "p.png"
    RGB.save(path)
    with pytest.raises(MediaLimitError, match=r"p\.png"):
        decode_image(path, MediaLimits(max_bytes=10))


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("this is no picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    script = tmp_path / "page.eps"  # Pillow would run Ghostscript for it
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    cases = [
        (tmp_path / "none.png", "no such file"),
        (empty, "empty"),
        (text, "not a picture"),
        (script, "not a picture"),
    ]
    for path, what in [*cases, (tmp_path, "regular file"), (Path("/dev/zero"), "regular file")]:
        with pytest.raises(MediaDecodeError, match=what) as caught:
            decode_image(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "medium",
    [
        "http://example.org/cat.jpg",
        "data:image/png;base64,@@@",
        "data:image/png,abc",
        io.StringIO("text"),
        None,
        7,
        np.zeros((2, 2, 2, 3), np.uint8),
        np.zeros((3, 40, 60), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.full((2, 2, 3), 7.0),
        np.full((2, 2, 3), np.nan),
        np.zeros((2, 2, 3), np.int32),
        Image.new("F", (4, 4)),
        "name\0with null",
    ],
)
def test_what_is_no_picture(medium: Any) -> None:
    with pytest.raises(MediaDecodeError):
        decode_image(medium)


SAMPLES = {kind: saved(RGB, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")}


@pytest.mark.parametrize("kind", SAMPLES)
def test_cut_short(kind: str) -> None:
    data = SAMPLES[kind]
    for end in range(0, len(data) - 64, max(1, len(data) // 40)):
        with pytest.raises(MediaDecodeError, match="<bytes>"):
            decode_image(data[:end])


@settings(max_examples=150, deadline=2_000)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_damaged_pictures_end_in_an_error_or_a_picture(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    pixels = outcome(lambda: decode_image(bytes(damaged)))
    if isinstance(pixels, MediaError):
        assert "<bytes>" in str(pixels)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


@settings(max_examples=60, deadline=2_000)
@given(st.binary(max_size=2_000))
def test_noise(data: bytes) -> None:
    with pytest.raises(MediaError):
        decode_image(data)
