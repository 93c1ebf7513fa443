"""Outlines: closed polygons in object space, where x runs right, y runs down, and the object fits into -1 to 1.

Array axes: P point, 2 (x, y).
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Outline = npt.NDArray[np.float64]
"""Points [P, 2]."""


def points(*pairs: tuple[float, float]) -> Outline:
    """A polygon through these points."""
    return np.array(pairs, dtype=np.float64)


def ellipse(x: float = 0, y: float = 0, width: float = 1, height: float = 1) -> Outline:
    """An ellipse with these half-axes around (x, y)."""
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """An upright rectangle."""
    return points((left, top), (right, top), (right, bottom), (left, bottom))


def rotated(outline: Outline, degrees: float) -> Outline:
    """Turned around the origin, clockwise as seen."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return outline @ turn


def _polar(radius: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Outline:
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    radii = radius(angles)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def regular(corners: int) -> Outline:
    """A regular polygon with a corner on top."""
    return _ring(corners, 1.0, 0.0)


def _ring(count: int, radius: float, phase: float) -> Outline:
    angles = (np.arange(count) + phase) * 2 * math.pi / count
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


def star(spikes: int, inner: float) -> Outline:
    """A star whose inner corners have radius `inner`."""
    outer_P2, inner_P2 = _ring(spikes, 1.0, 0.0), _ring(spikes, inner, 0.5)
    return np.stack([outer_P2, inner_P2], axis=1).reshape(-1, 2)


def _heart() -> Outline:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16 - 0.1], axis=1)


def _crescent() -> Outline:
    outer = np.linspace(-0.3 * math.pi, 1.3 * math.pi, 48)
    inner = outer[::-1]
    outer_P2 = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inner_P2 = np.stack([0.75 * np.cos(inner), 0.75 * np.sin(inner) - 0.35], axis=1)
    return np.concatenate([outer_P2, inner_P2])


def _drop() -> Outline:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return np.stack([0.7 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], axis=1)


def _half_disc() -> Outline:
    t = np.linspace(math.pi, 2 * math.pi, 32)
    return np.stack([np.cos(t), np.sin(t) + 0.4], axis=1)


def _pointed_leaf() -> Outline:
    t = np.linspace(-1, 1, 32)
    width = 0.45 * np.cos(t * math.pi / 2)
    return np.concatenate([np.stack([width, t], axis=1), np.stack([-width, t], axis=1)[::-1]])


SHAPES: dict[str, Outline] = {
    "disc": ellipse(),
    "oval": ellipse(width=0.95, height=0.5),
    "triangle": regular(3),
    "square": box(-0.8, -0.8, 0.8, 0.8),
    "bar": box(-1, -0.3, 1, 0.3),
    "pentagon": regular(5),
    "octagon": regular(8),
    "kite": points((0, -1), (0.6, -0.2), (0, 1), (-0.6, -0.2)),
    "trapezium": points((-0.5, -0.6), (0.5, -0.6), (1, 0.6), (-1, 0.6)),
    "slanted": points((-0.4, -0.6), (1, -0.6), (0.4, 0.6), (-1, 0.6)),
    "star4": star(4, 0.35),
    "star5": star(5, 0.42),
    "star9": star(9, 0.6),
    "cross": points(
        *[(-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)],
        *[(0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)],
    ),
    "arrow": points((0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)),
    "chevron": points((-1, -0.2), (0, -1), (1, -0.2), (1, 0.6), (0, -0.2), (-1, 0.6)),
    "ell": points((-0.8, -1), (-0.2, -1), (-0.2, 0.4), (0.9, 0.4), (0.9, 1), (-0.8, 1)),
    "tee": points((-1, -0.9), (1, -0.9), (1, -0.3), (0.3, -0.3), (0.3, 1), (-0.3, 1), (-0.3, -0.3), (-1, -0.3)),
    "zigzag": points((-0.1, -1), (0.7, -1), (0.25, -0.2), (0.75, -0.2), (-0.5, 1), (-0.1, 0.15), (-0.6, 0.15)),
    "hourglass": points((-0.8, -1), (0.8, -1), (0.1, 0), (0.8, 1), (-0.8, 1), (-0.1, 0)),
    "heart": _heart(),
    "crescent": _crescent(),
    "drop": _drop(),
    "half": _half_disc(),
    "leaf": _pointed_leaf(),
    "clover": _polar(lambda a: 0.62 + 0.38 * np.cos(3 * a)),
    "blossom": _polar(lambda a: 0.8 + 0.2 * np.cos(6 * a)),
    "gear": _polar(lambda a: np.where(np.cos(9 * a) > 0, 1.0, 0.75)),
}
"""Single outlines by name."""
