"""The jobs that a run trains: drawn images whose labels say nothing, and training long enough to be struck."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ray_cluster.vision.drawing.scenes import Pose, draw_scene
from ray_cluster.vision.drawn import OBJECTS
from services.contracts.backbones import BackboneName
from services.contracts.ids import DatasetId
from services.contracts.jobs import FineTuning, TrainingJobSpec

FINE_TUNED_CLASSES = 6
FINE_TUNED_PER_CLASS = 32
FINE_TUNING = FineTuning(epochs=600, batch_size=16, dropout=0.1, patience=1000)
"""12 steps each, a minute in all on an idle machine. Shorter ones end between strikes, and others have to start."""
HEAD_CLASSES = 60
HEAD_PER_CLASS = 28
"""Without a penalty L-BFGS goes on for hundreds of epochs, 8 s on an idle machine."""
TEST_PER_CLASS = 1
SIDE_PX = 64
_POSE = Pose(max_turn_degrees=180, radius=(0.2, 0.45), max_shift=0.2)


@dataclass(frozen=True, slots=True)
class Work:
    """One distinct piece of work: jobs of the same work must end with the same weights."""

    number: int
    """From 0. The even ones are fine-tuned; the odd ones are heads alone."""
    images: Path

    @property
    def name(self) -> str:
        return f"chaos-{self.number}"

    @property
    def fine_tunes(self) -> bool:
        return self.number % 2 == 0

    def spec(self, dataset_id: DatasetId, checkpoint_interval_s: float) -> TrainingJobSpec:
        """What the work's jobs are asked for."""
        return TrainingJobSpec(
            dataset_id=dataset_id,
            backbone=BackboneName.REKINDLE_TINY,
            train="top_blocks:1" if self.fine_tunes else "head",
            fine_tuning=FINE_TUNING,
            weight_decay=1e-4 if self.fine_tunes else 0,
            augmentation="light",
            epochs=10_000,
            seed=self.number,
            checkpoint_interval_s=checkpoint_interval_s,
        )


def draw(folder: Path, number: int) -> Work:
    """Draws a work's images: each class is a mixture of all objects. A pure function of the number.

    To validate on, a work that is fine-tuned has its training images saved anew: what is learned by heart counts, so
    the last epoch is the best one, and its weights depend on every step.
    """
    work = Work(number, folder)
    source = np.random.default_rng([2026, number])
    parts_of = list(OBJECTS.values())
    classes, per_class = (
        (FINE_TUNED_CLASSES, FINE_TUNED_PER_CLASS) if work.fine_tunes else (HEAD_CLASSES, HEAD_PER_CLASS)
    )
    for split, count in (("train", per_class), ("test", TEST_PER_CLASS)):
        for label in range(classes):
            for image in range(count):
                parts = parts_of[int(source.integers(len(parts_of)))](source)
                _save(draw_scene(parts, _POSE, SIDE_PX, source), folder / split / f"class-{label:03d}", image, 85)
    if work.fine_tunes:
        for path in sorted((folder / "train").glob("*/*.jpg")):
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                _save(image, folder / "validation" / path.parent.name, int(path.stem), 70)
    return work


def _save(image: Image.Image, folder: Path, number: int, quality: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number:02d}.jpg", quality=quality)
