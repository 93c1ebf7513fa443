"""What the fit, and evaluation after it, read from the cache: which rows, of which images, with which labels.

Array axes: N row, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_cluster.train import head_recipe
from ray_cluster.train.features import FeatureIndex, FeatureKey
from services.contracts.datasets import DatasetManifest, ImageRecord, Split
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore


@dataclass(frozen=True, slots=True, eq=False)
class SplitFeatures:
    """A split's images as features, one row per image and view: all images as they are first, then view by view."""

    features_ND: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64]
    image_count: int

    def plain(self) -> npt.NDArray[np.float32]:
        """The rows of the images as they are."""
        return self.features_ND[: self.image_count]

    def joined(self, other: "SplitFeatures") -> "SplitFeatures":
        """Both splits' rows in one, view by view. Both have the same views."""
        views = len(self.labels_N) // self.image_count
        parts = [
            part
            for view in range(views)
            for part in (
                self.features_ND[view * self.image_count : (view + 1) * self.image_count],
                other.features_ND[view * other.image_count : (view + 1) * other.image_count],
            )
        ]
        labels = np.concatenate([self.labels_N[: self.image_count], other.labels_N[: other.image_count]])
        return SplitFeatures(np.concatenate(parts), np.tile(labels, views), self.image_count + other.image_count)


def images_of(manifest: DatasetManifest, split: Split) -> list[ImageRecord]:
    """The split's images, ordered by path."""
    return [image for image in manifest.images if image.split is split]


def labels_of(manifest: DatasetManifest, images: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
    """Each image's class, as its place in the manifest's labels, [N]."""
    places = {label: place for place, label in enumerate(manifest.labels)}
    return np.array([places[image.label] for image in images], np.int64)


def evaluated_split(manifest: DatasetManifest) -> Split:
    """Where quality is measured: on the test split if it has images, else on validation."""
    return Split.TEST if images_of(manifest, Split.TEST) else Split.VALIDATION


def refits(manifest: DatasetManifest, spec: TrainingJobSpec) -> bool:
    """Whether the head is fitted again on training and validation images together: where we held the validation
    images out of the training images, and measure on others. Fine-tuning needs them to tell when to stop."""
    return not spec.fine_tunes and manifest.validation_held_out and evaluated_split(manifest) is Split.TEST


def trained_splits(manifest: DatasetManifest, spec: TrainingJobSpec) -> set[Split]:
    """The splits that the published weights were trained on."""
    return {Split.TRAIN, Split.VALIDATION} if refits(manifest, spec) else {Split.TRAIN}


def views_needed(manifest: DatasetManifest, spec: TrainingJobSpec) -> list[tuple[ImageRecord, Sequence[int]]]:
    """Every image with the views of it that the job uses."""
    trained = trained_splits(manifest, spec)
    views = head_recipe.VIEWS[spec.augmentation]
    return [(image, views if image.split in trained else (0,)) for image in manifest.images]


def read_split(
    store: ObjectStore,
    index: FeatureIndex,
    trunk: TrunkManifest,
    manifest: DatasetManifest,
    split: Split,
    views: Sequence[int],
) -> SplitFeatures:
    """The split's rows out of the cache."""
    images = images_of(manifest, split)
    keys = [FeatureKey(image.sha256, view) for view in views for image in images]
    labels_N = labels_of(manifest, images)
    features_ND = index.read(store, keys, trunk.feature_dim)
    return SplitFeatures(features_ND, np.tile(labels_N, len(views)), len(images))
