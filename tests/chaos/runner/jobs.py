"""The jobs that a run trains: drawn images whose labels say nothing, so that the fit takes long enough to be struck."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_cluster.vision.drawing.scenes import Pose, draw_scene
from ray_cluster.vision.drawn import OBJECTS
from services.contracts.backbones import BackboneName
from services.contracts.ids import DatasetId
from services.contracts.jobs import TrainingJobSpec

CLASSES = 60
TRAIN_PER_CLASS = 28
TEST_PER_CLASS = 1
"""There is a test split, so the head is fitted twice: the second phase is struck as well."""
SIDE_PX = 64
_POSE = Pose(max_turn_degrees=180, radius=(0.2, 0.45), max_shift=0.2)


@dataclass(frozen=True, slots=True)
class Work:
    """One distinct piece of work: jobs of the same work must end with the same weights."""

    number: int
    """From 0."""
    images: Path

    @property
    def name(self) -> str:
        return f"chaos-{self.number}"

    def spec(self, dataset_id: DatasetId, checkpoint_interval_s: float) -> TrainingJobSpec:
        """Without a penalty, so that L-BFGS needs hundreds of epochs."""
        return TrainingJobSpec(
            dataset_id=dataset_id,
            backbone=BackboneName.REKINDLE_TINY,
            weight_decay=0,
            augmentation="light",
            epochs=10_000,
            seed=self.number,
            checkpoint_interval_s=checkpoint_interval_s,
        )


def draw(folder: Path, number: int) -> Work:
    """Draws a work's images: each class is a mixture of all objects. A pure function of the number."""
    source = np.random.default_rng([2026, number])
    parts_of = list(OBJECTS.values())
    for split, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        for label in range(CLASSES):
            target = folder / split / f"class-{label:03d}"
            target.mkdir(parents=True)
            for image in range(count):
                parts = parts_of[int(source.integers(len(parts_of)))](source)
                draw_scene(parts, _POSE, SIDE_PX, source).save(target / f"{image:02d}.jpg", quality=85)
    return Work(number, folder)
