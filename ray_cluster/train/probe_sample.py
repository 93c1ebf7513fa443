"""Which images a backbone is probed on: a pure function of the seed and of the images' bytes and labels.

Few of them change when images are added to a dataset, and none of the splits' hashes is used: those would put the
validation images first.

Array axes: N image.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.contracts.datasets import DatasetManifest, ImageRecord, Split

IMAGES = 600
"""At most, over all classes."""
IMAGES_PER_CLASS = 60
"""At most; fewer where there are more than ten classes."""
LEAST_PER_CLASS = 4
"""Of more classes than can each have so many, some are left out."""
CLASSES = IMAGES // LEAST_PER_CLASS
FOLDS = 5


@dataclass(frozen=True, slots=True)
class ProbeSample:
    """Training and validation images, class by class."""

    images: list[ImageRecord]
    labels: list[str]
    """The classes of the images, in the manifest's order."""
    folds: list[int]
    """By image: the part in which it is held out, from 0 to `FOLDS` - 1. A class is spread over them evenly."""

    def classes(self) -> npt.NDArray[np.int64]:
        """Each image's class, as its place in `labels`, [N]."""
        places = {label: place for place, label in enumerate(self.labels)}
        return np.array([places[image.label] for image in self.images], np.int64)

    @property
    def fold_count(self) -> int:
        """Parts with images in them."""
        return len(set(self.folds))


def sample(manifest: DatasetManifest, seed: int) -> ProbeSample:
    """As many images of each class, where it has so many; never one of the test split."""
    by_label: dict[str, list[ImageRecord]] = defaultdict(list)
    for image in manifest.images:
        if image.split is not Split.TEST:
            by_label[image.label].append(image)
    taken = sorted(by_label, key=lambda label: _rank(label, seed))[:CLASSES]
    labels = [label for label in manifest.labels if label in set(taken)]
    most = min(IMAGES_PER_CLASS, IMAGES // len(labels))
    images: list[ImageRecord] = []
    folds: list[int] = []
    for place, label in enumerate(labels):
        ranked = sorted(by_label[label], key=lambda image: _rank(image.sha256, seed))[:most]
        images += ranked
        folds += [(place + position) % FOLDS for position in range(len(ranked))]
    return ProbeSample(images, labels, folds)


def _rank(what: str, seed: int) -> bytes:
    return hashlib.sha256(f"probe:{seed}:{what}".encode()).digest()
