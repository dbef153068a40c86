"""Draws the scenes of `world` with Pillow, in many hands: sizes, aspect ratios, textures, fonts, noise."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from world import COLOURS, SHAPES, THINGS, Item, Scene

_STAMP_OF = {name: short for short, name in THINGS.items()}
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LABELS = {name: n + 1 for n, name in enumerate((*SHAPES, *THINGS.values(), *CHARACTERS))}
TINTS = {name: n for n, name in enumerate(COLOURS)}
_ASPECTS = ((1, 1), (1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (2, 1))


@dataclass(frozen=True)
class Mark:
    """What was drawn where (pixels), for the auxiliary losses: a label, a colour (or ""), a centre and a reach;
    and what it has been doing since the frame before (or "")."""

    label: int
    colour: str
    x: float
    y: float
    reach: float
    motion: str = ""


class Studio:
    """Where the drawing materials lie: a folder of 64 x 64 PNG stamps, and a folder of fonts."""

    def __init__(self, stamps: Path | None = None, fonts: Path | None = None) -> None:
        self.stamps = stamps
        self.fonts = sorted([*fonts.glob("*.ttf"), *fonts.glob("*.otf")]) if fonts else []

    @cache  # noqa: B019 - one studio a process
    def stamp(self, name: str) -> Image.Image:
        if self.stamps is None:
            raise ValueError(f"no folder of stamps given, so no {name} can be drawn")
        index = self._index()
        return Image.open(self.stamps / index[_STAMP_OF[name]]).convert("RGBA")

    @cache  # noqa: B019
    def _index(self) -> dict[str, str]:
        """Short name -> file, from the list that `prepare.py` writes beside the stamps."""
        assert self.stamps is not None
        lines = (self.stamps / "index.txt").read_text().split("\n")
        return dict(line.split(" ", 1) for line in lines if line)

    @cache  # noqa: B019
    def font(self, choice: int, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        if not self.fonts:
            return ImageFont.load_default(size)
        return ImageFont.truetype(str(self.fonts[choice % len(self.fonts)]), size)


def tint(rng: random.Random, colour: str, spread: int = 14) -> tuple[int, int, int]:
    """The named colour, a little off."""
    return tuple(min(255, max(0, c + rng.randint(-spread, spread))) for c in COLOURS[colour])  # type: ignore[return-value]


def draw_scene(
    rng: random.Random, scene: Scene, studio: Studio, plain: bool = False, marks: list[Mark] | None = None
) -> Image.Image:
    """The scene as an RGB picture; `plain` leaves out the wear (noise, blur, JPEG); `marks` takes what is where."""
    marks = [] if marks is None else marks
    wide, high = rng.choice(_ASPECTS)
    area = rng.uniform(200, 420) ** 2
    width, height = int(math.sqrt(area * wide / high)), int(math.sqrt(area * high / wide))
    image = background(rng, scene.background, width, height)
    scale = min(width, height)
    for item in scene.items:
        x, y, reach = item.x * width, item.y * height, item.radius * scale
        draw_item(rng, image, item, x, y, reach, studio)
        marks.append(Mark(LABELS[item.kind.name], item.kind.colour, x, y, reach))
    if scene.sign:
        marks += draw_sign(rng, image, scene, studio)
    return image if plain else wear(rng, image)


def background(rng: random.Random, colour: str, width: int, height: int) -> Image.Image:
    """Plain, shaded or grained."""
    base = tint(rng, colour, 10)
    style = rng.random()
    if style < 0.5:
        return Image.new("RGB", (width, height), base)
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = np.full((height, width, 3), base, np.float32)
    if style < 0.8:
        ramp = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-18, 18)
        pixels += ramp + np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-18, 18)
    else:
        cells = noise.normal(0, rng.uniform(2, 9), (height // 4 + 1, width // 4 + 1, 1))
        pixels += cells.repeat(4, 0).repeat(4, 1)[:height, :width]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_item(
    rng: random.Random, image: Image.Image, item: Item, x: float, y: float, radius: float, studio: Studio
) -> None:
    turn = rng.uniform(-0.18, 0.18)
    if item.kind.is_shape:
        fill = tint(rng, item.kind.colour)
        outline = tint(rng, rng.choice(("black", "white"))) if rng.random() < 0.25 else None
        mask = shape_mask(item.kind.name, radius, turn)
        corner = (round(x - mask.width / 2), round(y - mask.height / 2))
        if outline is not None:
            edge = mask.filter(ImageFilter.MaxFilter(3 if radius < 40 else 5))
            image.paste(outline, corner, edge)
        image.paste(fill, corner, mask)
        return
    paste_stamp(image, item.kind.name, x, y, radius, math.degrees(turn), rng.random() < 0.3, studio)


def paste_stamp(
    image: Image.Image, name: str, x: float, y: float, radius: float, degrees: float, mirrored: bool, studio: Studio
) -> None:
    side = max(12, round(radius * 2))
    stamp = studio.stamp(name).resize((side, side), Image.Resampling.BICUBIC)
    if mirrored:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if abs(degrees) > 4:
        stamp = stamp.rotate(degrees * 0.8, Image.Resampling.BICUBIC)
    image.paste(stamp, (round(x - side / 2), round(y - side / 2)), stamp)


def outline_of(name: str) -> list[tuple[float, float]]:
    """The corners of a shape in the unit circle (those that have corners)."""
    if name == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if name == "diamond":
        return [(0, -1.0), (0.62, 0), (0, 1.0), (-0.62, 0)]
    if name == "triangle":
        return [(0, -0.95), (0.9, 0.75), (-0.9, 0.75)]
    if name == "cross":
        w = 0.3
        return [(-w, -0.9), (w, -0.9), (w, -w), (0.9, -w), (0.9, w), (w, w), (w, 0.9), (-w, 0.9), (-w, w), (-0.9, w),
                (-0.9, -w), (-w, -w)]  # fmt: skip
    if name == "star":
        points = []
        for n in range(10):
            r, a = (1.0 if n % 2 == 0 else 0.42), math.pi * n / 5 - math.pi / 2
            points.append((r * math.cos(a), r * math.sin(a)))
        return points
    if name == "heart":
        points = []
        for n in range(40):
            t = 2 * math.pi * n / 40
            px = 16 * math.sin(t) ** 3
            py = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((px / 17.5, -py / 17.5))
        return points
    raise ValueError(f"{name} has no corners")


def shape_mask(name: str, radius: float, turn: float = 0.0) -> Image.Image:
    """An anti-aliased mask of the shape, a little larger than its circle."""
    side = max(8, round(radius * 2.2))
    big = Image.new("L", (side * 2, side * 2), 0)
    pen, middle, r = ImageDraw.Draw(big), side, radius * 2
    if name in ("circle", "ring"):
        pen.ellipse((middle - r * 0.95, middle - r * 0.95, middle + r * 0.95, middle + r * 0.95), fill=255)
        if name == "ring":
            hole = r * 0.55
            pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    else:
        cos, sin = math.cos(turn), math.sin(turn)
        corners = [(middle + r * (x * cos - y * sin), middle + r * (x * sin + y * cos)) for x, y in outline_of(name)]
        pen.polygon(corners, fill=255)
    return big.resize((side, side), Image.Resampling.BOX)


def draw_sign(rng: random.Random, image: Image.Image, scene: Scene, studio: Studio) -> list[Mark]:
    """The word on the background itself or on a board; returns where its letters are."""
    width, height = image.size
    pen = ImageDraw.Draw(image)
    ground = scene.background
    choice = rng.randrange(1000)
    wanted = width * rng.uniform(0.55, 0.86)
    trial = studio.font(choice, 40)
    left, top, right, bottom = trial.getbbox(scene.sign)
    size = int(min(40 * wanted / max(1, right - left), 40 * height * 0.5 / max(1, bottom - top)))
    size = max(24, size // 4 * 4)
    font = studio.font(choice, size)
    left, top, right, bottom = font.getbbox(scene.sign)
    w, h = right - left, bottom - top
    x = rng.uniform(0.04 * width, max(0.04 * width, 0.96 * width - w))
    y = rng.uniform(0.08 * height, max(0.08 * height, 0.92 * height - h))
    if rng.random() < 0.5:
        ground = rng.choice([c for c in COLOURS if c != scene.background])
        pad = size * rng.uniform(0.15, 0.3)
        box = (x - pad, y - pad, x + w + pad, y + h + pad)
        edge = tint(rng, rng.choice(("black", "white", "gray")))
        pen.rounded_rectangle(box, rng.uniform(0, pad), fill=tint(rng, ground), outline=edge, width=rng.randint(1, 4))
    dark = sum(COLOURS[ground]) < 380
    inks = ("white", "yellow", "white", "pink") if dark else ("black", "blue", "brown", "black", "purple")
    pen.text((x - left, y - top), scene.sign, font=font, fill=tint(rng, rng.choice(inks)))
    marks, before = [], 0.0
    for n, letter in enumerate(scene.sign):
        after = font.getlength(scene.sign[: n + 1])
        marks.append(Mark(LABELS[letter], "", x - left + (before + after) / 2, y + h / 2, max(after - before, h) / 2))
        before = after
    return marks


def wear(rng: random.Random, image: Image.Image) -> Image.Image:
    """What cameras, screens and codecs do to a picture."""
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 9), (image.height, image.width, 3))
        image = Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.35:
        image = jpeg(image, rng.randint(35, 92))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    store = io.BytesIO()
    image.save(store, "JPEG", quality=quality)
    return Image.open(store).convert("RGB")
