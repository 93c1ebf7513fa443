"""Scenes: an object of filled outlines on a background with clutter, light and noise.

Colours are drawn independently of what is shown, so that only form and texture tell classes apart.

Array axes: H height, W width, C channel, P point.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ray_cluster.vision.drawing.outlines import SHAPES, Outline

Colour = tuple[int, int, int]


class Fill(StrEnum):
    """How the inside of an outline is painted."""

    PLAIN = "plain"
    STRIPES = "stripes"
    CHECKS = "checks"
    DOTS = "dots"


@dataclass(frozen=True, slots=True)
class Part:
    """One outline of an object, painted in the order of the list."""

    outline: Outline
    colour: int = 0
    """Index into the object's palette; equal indices have equal colours."""
    fill: Fill = Fill.PLAIN


@dataclass(frozen=True, slots=True)
class Pose:
    """How much an object's place varies. Shares are of the picture's side."""

    max_turn_degrees: float
    radius: tuple[float, float] = (0.26, 0.42)
    max_shift: float = 0.1


def draw_scene(parts: Sequence[Part], pose: Pose, size: int, rng: np.random.Generator) -> Image.Image:
    """A picture of `size` pixels squared, mode RGB: a pure function of its arguments and the generator's state."""
    side = 2 * size  # drawn twice as large, since Pillow draws without antialiasing
    picture = _background(side, rng)
    _add_clutter(picture, rng)
    around = np.asarray(picture).mean(axis=(0, 1))
    palette = [_visible_colour(around, rng) for _ in range(1 + max(part.colour for part in parts))]
    place = _placement(pose, side, rng)
    for part in parts:
        _paint(picture, place(part.outline), palette[part.colour], part.fill, rng)
    picture = picture.resize((size, size), Image.Resampling.BOX)
    return _as_photographed(picture, rng)


def _colour(rng: np.random.Generator) -> Colour:
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.25, 1), rng.uniform(0.25, 1)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _visible_colour(around_C: np.ndarray, rng: np.random.Generator) -> Colour:
    """A colour that stands out from the background's mean, nearly always; a picture where it does not is a hard one."""
    colour = _colour(rng)
    for _ in range(5):
        if np.abs(np.array(colour) - around_C).sum() >= 150:
            break
        colour = _colour(rng)
    return colour


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    """A coarse grid of colours, smoothly enlarged: from nearly plain to blotchy."""
    cells = int(rng.choice([1, 2, 3, 6]))
    base_C = np.array(_colour(rng), np.float64)
    grid_HWC = base_C + rng.normal(0, 32, (cells, cells, 3))
    grid = Image.fromarray(np.clip(grid_HWC, 0, 255).astype(np.uint8))
    return grid.resize((side, side), Image.Resampling.BICUBIC)


def _add_clutter(picture: Image.Image, rng: np.random.Generator) -> None:
    names = list(SHAPES)
    for _ in range(int(rng.integers(0, 5))):
        outline = SHAPES[names[int(rng.integers(len(names)))]]
        pose = Pose(180, radius=(0.04, 0.1), max_shift=0.45)
        _paint(picture, _placement(pose, picture.width, rng)(outline), _colour(rng), Fill.PLAIN, rng)


class _placement:  # noqa: N801 - a function with a memory, called like one
    """Maps object space to pixels: stretched a little, turned, scaled, moved."""

    def __init__(self, pose: Pose, side: int, rng: np.random.Generator) -> None:
        angle = math.radians(rng.uniform(-pose.max_turn_degrees, pose.max_turn_degrees))
        radius = side * rng.uniform(*pose.radius)
        stretch = np.diag(radius * rng.uniform(0.85, 1.15, 2) * np.array([rng.choice([-1, 1]), 1]))
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        self._matrix = stretch @ turn
        self._centre = side * (0.5 + rng.uniform(-pose.max_shift, pose.max_shift, 2))

    def __call__(self, outline_P2: Outline) -> Outline:
        return outline_P2 @ self._matrix + self._centre


def _paint(picture: Image.Image, outline_P2: Outline, colour: Colour, fill: Fill, rng: np.random.Generator) -> None:
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in outline_P2], fill=255)
    picture.paste(colour, mask=mask)
    if fill is not Fill.PLAIN:
        other = _contrasting(colour, rng)
        texture = Image.fromarray(np.where(_texture(fill, picture.width, rng), np.asarray(mask), 0).astype(np.uint8))
        picture.paste(other, mask=texture)


def _contrasting(colour: Colour, rng: np.random.Generator) -> Colour:
    """A colour that is clearly lighter or darker."""
    share = rng.uniform(0.55, 0.85)
    target = 255 if sum(colour) < 384 else 0
    red, green, blue = (round(channel + share * (target - channel)) for channel in colour)
    return red, green, blue


def _texture(fill: Fill, side: int, rng: np.random.Generator) -> np.ndarray:
    """Where the second colour goes: bool [side, side]."""
    period = side * rng.uniform(0.09, 0.16)
    angle = rng.uniform(0, math.pi)
    y_HW, x_HW = np.mgrid[0:side, 0:side] + rng.uniform(0, period, (2, 1, 1))
    along_HW = (x_HW * math.cos(angle) + y_HW * math.sin(angle)) / period
    across_HW = (y_HW * math.cos(angle) - x_HW * math.sin(angle)) / period
    match fill:
        case Fill.STRIPES:
            return along_HW % 1 < 0.5
        case Fill.CHECKS:
            return (along_HW % 1 < 0.5) ^ (across_HW % 1 < 0.5)
        case Fill.DOTS:
            return (along_HW % 1 - 0.5) ** 2 + (across_HW % 1 - 0.5) ** 2 < 0.09
        case Fill.PLAIN:
            return np.zeros((side, side), bool)


def _as_photographed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Uneven light, a little blur, sensor noise."""
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.9))))
    pixels_HWC = np.asarray(picture, np.float64)
    height, width = pixels_HWC.shape[:2]
    ramp_HW = np.linspace(-1, 1, width) * rng.uniform(-1, 1) + np.linspace(-1, 1, height)[:, None] * rng.uniform(-1, 1)
    light_HWC = (rng.uniform(0.8, 1.15) + 0.12 * ramp_HW)[:, :, None]
    noise_HWC = rng.normal(0, rng.uniform(2, 9), pixels_HWC.shape)
    return Image.fromarray(np.clip(pixels_HWC * light_HWC + noise_HWC, 0, 255).astype(np.uint8))
