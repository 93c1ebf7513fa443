"""The demo's images: six kinds of drawn objects, none of which `rekindle_tiny` saw when it was pretrained.

python -m ray_cluster.vision.drawn FOLDER
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ray_cluster.vision.drawing.outlines import Outline, box, ellipse, points, rotated
from ray_cluster.vision.drawing.scenes import Fill, Part, Pose, draw_scene

_POSE = Pose(max_turn_degrees=20, radius=(0.3, 0.44), max_shift=0.08)
_FILLS = (Fill.PLAIN, Fill.PLAIN, Fill.STRIPES, Fill.CHECKS, Fill.DOTS)


def draw_dataset(folder: Path, *, train_per_class: int = 40, test_per_class: int = 10, seed: int = 0) -> None:
    """Writes `train/<class>/<number>.jpg` and `test/<class>/<number>.jpg`, 96 to 160 px squared.

    The same arguments give the same pictures with the same version of Pillow. Files of the same name are overwritten.
    """
    for split, (name, count) in enumerate([("train", train_per_class), ("test", test_per_class)]):
        for label, (class_name, parts_of) in enumerate(OBJECTS.items()):
            target = folder / name / class_name
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                rng = np.random.default_rng([seed, split, label, number])
                size = int(rng.integers(96, 161))
                picture = draw_scene(parts_of(rng), _POSE, size, rng)
                picture.save(target / f"{number:03d}.jpg", quality=int(rng.integers(75, 93)))


def _fill(rng: np.random.Generator) -> Fill:
    return _FILLS[int(rng.integers(len(_FILLS)))]


def _moved(outline: Outline, x: float, y: float) -> Outline:
    return outline + np.array([x, y])


def _boat(rng: np.random.Generator) -> list[Part]:
    top = rng.uniform(-1, -0.8)
    parts = [
        Part(points((-1, 0.3), (1, 0.3), (0.65, 0.85), (-0.65, 0.85)), 0, _fill(rng)),
        Part(box(-0.05, top, 0.05, 0.3), 1),
        Part(points((0.1, top), (rng.uniform(0.7, 0.95), 0.2), (0.1, 0.2)), 2, _fill(rng)),
    ]
    if rng.uniform() < 0.7:
        parts.append(Part(points((-0.1, top + 0.15), (-0.1, 0.2), (rng.uniform(-0.75, -0.5), 0.2)), 3, _fill(rng)))
    return parts


def _fish(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.38, 0.55)
    return [
        Part(points((0.4, 0), (1, -0.5), (0.85, 0), (1, 0.5)), 1),
        Part(points((-0.25, -0.3), (0.1, -rng.uniform(0.7, 0.9)), (0.3, -0.25)), 1),
        Part(ellipse(-0.2, 0, 0.75, height), 0, _fill(rng)),
        Part(ellipse(-0.62, -0.1, 0.12, 0.12), 2),
        Part(ellipse(-0.64, -0.1, 0.06, 0.06), 3),
    ]


def _flower(rng: np.random.Generator) -> list[Part]:
    petals = int(rng.integers(5, 9))
    petal = ellipse(0, -0.42, rng.uniform(0.16, 0.24), 0.26)
    fill = _fill(rng)
    return [
        Part(box(-0.05, -0.2, 0.05, 1), 2),
        Part(_moved(rotated(ellipse(width=0.32, height=0.13), -30), 0.3, 0.6), 2),
        *(Part(_moved(rotated(petal, 360 * k / petals), 0, -0.3), 0, fill) for k in range(petals)),
        Part(ellipse(0, -0.3, 0.2, 0.2), 1),
    ]


def _house(rng: np.random.Generator) -> list[Part]:
    eaves, ridge = rng.uniform(-0.25, -0.05), rng.uniform(-1, -0.8)
    door = rng.uniform(-0.45, 0.1)
    return [
        Part(box(0.35, ridge, 0.55, eaves), 3),
        Part(box(-0.75, eaves, 0.75, 0.9), 0, _fill(rng)),
        Part(points((-0.95, eaves), (0, ridge), (0.95, eaves)), 1, _fill(rng)),
        Part(box(door, 0.3, door + 0.3, 0.9), 2),
        Part(box(0.4, eaves + 0.25, 0.65, eaves + 0.5), 4),
    ]


def _mushroom(rng: np.random.Generator) -> list[Part]:
    angles = np.linspace(np.pi, 2 * np.pi, 32)
    height = rng.uniform(0.7, 1)
    cap = np.stack([0.95 * np.cos(angles), 0.1 + height * np.sin(angles)], axis=1)
    foot = rng.uniform(0.3, 0.42)
    spots = [(-0.5, -0.15), (0.05, -0.4), (0.5, -0.1), (-0.15, -0.05)][: int(rng.integers(2, 5))]
    return [
        Part(points((-0.22, 0.1), (0.22, 0.1), (foot, 0.95), (-foot, 0.95)), 1, _fill(rng)),
        Part(cap, 0),
        *(Part(ellipse(x, y, 0.13, 0.12), 2) for x, y in spots),
    ]


def _tree(rng: np.random.Generator) -> list[Part]:
    stem = Part(box(-0.14, 0.2, 0.14, 1), 1, _fill(rng))
    if rng.uniform() < 0.5:
        fill = _fill(rng)
        tiers = [(-1.0, 0.5, -0.35), (-0.65, 0.68, 0.1), (-0.3, 0.85, 0.6)]
        return [stem, *(Part(points((0, top), (w, low), (-w, low)), 0, fill) for top, w, low in reversed(tiers))]
    crowns = [(-0.4, -0.1), (0.4, -0.1), (0.0, -0.5), (0.0, -0.05)]
    return [stem, *(Part(ellipse(x, y, 0.45, rng.uniform(0.38, 0.48)), 0) for x, y in crowns)]


OBJECTS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "boat": _boat,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "mushroom": _mushroom,
    "tree": _tree,
}
"""The demo's classes."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the demo's images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-per-class", type=int, default=40)
    parser.add_argument("--test-per-class", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw_dataset(
        options.folder,
        train_per_class=options.train_per_class,
        test_per_class=options.test_per_class,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
