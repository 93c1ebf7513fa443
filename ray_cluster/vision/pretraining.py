"""How `assets/rekindle_tiny.weights.h5` was made: from drawings. Imports TensorFlow.

    python -m ray_cluster.vision.pretraining FOLDER

Writes the weights, with their classifier, and a JSON file that says how they came about and how good they are.

Two kinds of classes are told apart: single outlines by form and texture, at any angle; and figures, chance arrangements
of outlines, by which outlines they have and where, whatever their colours and textures. The demo's objects
(`drawn.OBJECTS`) are not among them, so the demo is a true transfer.

Array axes: B batch, H height, W width, C channel.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import PIL
import tensorflow as tf
from PIL import Image

from ray_cluster.vision.backbones import ARCHITECTURES, build_network
from ray_cluster.vision.drawing.outlines import SHAPES, rotated
from ray_cluster.vision.drawing.scenes import Fill, Part, Pose, draw_scene
from services.contracts.backbones import BACKBONES, BackboneName

BACKBONE = BackboneName.REKINDLE_TINY
IMAGE_SIZE = BACKBONES[BACKBONE].default_image_size
FIGURES = 120
LABELS = [f"{shape}/{fill}" for shape in SHAPES for fill in Fill] + [f"figure {number}" for number in range(FIGURES)]
_DRAWN_SIZE = 96
_MARGIN = 8
"""Pictures are kept this many pixels larger than the network's input, and cropped at random."""
_SHAPE_POSE = Pose(max_turn_degrees=180, radius=(0.24, 0.42), max_shift=0.12)
_FIGURE_POSE = Pose(max_turn_degrees=25, radius=(0.28, 0.45), max_shift=0.1)

Images = npt.NDArray[np.uint8]


def figure(number: int, rng: np.random.Generator) -> list[Part]:
    """One drawing of a figure: the number fixes its outlines and their places, `rng` textures and small shifts."""
    plan = np.random.default_rng([2018, number])
    parts: list[Part] = []
    for index in range(int(plan.integers(2, 6))):
        outline = list(SHAPES.values())[int(plan.integers(len(SHAPES)))]
        scale_2 = plan.uniform(0.5, 0.8) * plan.uniform(0.6, 1.2, 2) if index == 0 else plan.uniform(0.15, 0.45, 2)
        centre_2 = plan.uniform(-0.15, 0.15, 2) if index == 0 else plan.uniform(-0.75, 0.75, 2)
        turned = rotated(outline, plan.choice([0, 90, 180, 270]) + plan.normal(0, 12))
        placed = turned * scale_2 * rng.uniform(0.88, 1.12, 2) + centre_2 + rng.normal(0, 0.04, 2)
        part = Part(placed, int(plan.integers(0, 4)), list(Fill)[int(rng.integers(len(Fill)))])
        parts.insert(int(plan.integers(0, len(parts) + 1)), part)
    return parts


def draw_images(per_class: int, seed: int) -> tuple[Images, npt.NDArray[np.int64]]:
    """uint8 [B, 72, 72, 3] and indices into `LABELS`: `per_class` of each figure, a third as many of each outline."""
    counts = [per_class if label.startswith("figure") else max(1, per_class // 3) for label in LABELS]
    labels_B = np.repeat(np.arange(len(LABELS)), counts)
    side = IMAGE_SIZE + _MARGIN
    images_BHWC = np.empty((len(labels_B), side, side, 3), np.uint8)
    for row, label in enumerate(labels_B):
        rng = np.random.default_rng([seed, row])
        picture = _draw(LABELS[label], rng)
        images_BHWC[row] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    return images_BHWC, labels_B


def _draw(label: str, rng: np.random.Generator) -> Image.Image:
    shape, _, fill = label.partition("/")
    if fill:
        return draw_scene([Part(SHAPES[shape], 0, Fill(fill))], _SHAPE_POSE, _DRAWN_SIZE, rng)
    return draw_scene(figure(int(label.removeprefix("figure ")), rng), _FIGURE_POSE, _DRAWN_SIZE, rng)


def _cropped(images_BHWC: Images, rng: np.random.Generator) -> Images:
    """A random crop of each picture, mirrored half of the time."""
    offsets = rng.integers(0, _MARGIN + 1, (len(images_BHWC), 2))
    mirrored = rng.integers(0, 2, len(images_BHWC))
    crops_BHWC = np.empty((len(images_BHWC), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for row, ((top, left), mirror) in enumerate(zip(offsets, mirrored, strict=True)):
        crop = images_BHWC[row, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
        crops_BHWC[row] = crop[:, ::-1] if mirror else crop
    return crops_BHWC


def _classifier(network: keras.Model, steps: int) -> keras.Model:
    images = keras.Input(network.input_shape[1:], dtype="uint8")
    logits = network(ARCHITECTURES[BACKBONE].preprocess(keras.layers.Identity(dtype="float32")(images)))
    model = keras.Model(images, logits)
    schedule = keras.optimizers.schedules.CosineDecay(2e-4, steps, warmup_target=3e-3, warmup_steps=steps // 20)
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.01),  # pyright: ignore[reportArgumentType]
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # pyright: ignore[reportArgumentType] - on a CPU XLA is slower than TensorFlow's kernels
    )
    return model


def train(path: Path, per_class: int, epochs: int, seed: int, batch_size: int = 64) -> tuple[keras.Model, float, int]:
    """The trained network, its accuracy on freshly drawn pictures, and how many it was trained on.

    Writes the weights to `path` after every epoch.
    """
    keras.utils.set_random_seed(seed)
    images_BHWC, labels_B = draw_images(per_class, seed)
    network = build_network(BACKBONE, IMAGE_SIZE, len(LABELS))
    model = _classifier(network, epochs * (len(labels_B) // batch_size))
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, 1_000_000 + epoch])
        order = rng.permutation(len(labels_B))[: len(labels_B) // batch_size * batch_size]
        model.fit(_cropped(images_BHWC[order], rng), labels_B[order], batch_size=batch_size, shuffle=False)
        network.save_weights(path)
    unseen_BHWC, unseen_labels_B = draw_images(10, seed + 1)
    half = _MARGIN // 2
    _, accuracy = model.evaluate(unseen_BHWC[:, half:-half, half:-half], unseen_labels_B)
    return network, float(accuracy), len(labels_B)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain rekindle_tiny on drawn shapes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    started = time.monotonic()
    path = options.folder / f"{BACKBONE}.weights.h5"
    network, accuracy, image_count = train(path, options.per_class, options.epochs, options.seed)
    facts = {
        "command": f"python -m ray_cluster.vision.pretraining FOLDER --per-class {options.per_class} "
        f"--epochs {options.epochs} --seed {options.seed}",
        "accuracy_on_unseen_drawings": round(accuracy, 4),
        "image_count": image_count,
        "duration_s": round(time.monotonic() - started),
        "parameter_count": network.count_params(),
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "pillow": PIL.__version__},
        "labels": LABELS,
    }
    (options.folder / f"{BACKBONE}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
