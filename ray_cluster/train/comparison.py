"""How a retrained version compares with its parent on the same images. NumPy only.

Array axes: N image.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.contracts.base import Sha256
from services.contracts.datasets import ImageRecord
from services.contracts.jobs import ParentVersion
from services.contracts.models import ClassComparison, ParentComparison

BoolsN = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a version says about the images of a split."""

    labels: Sequence[str]
    """Its classes, as the dataset calls them."""
    predicted: Sequence[str]
    """The most probable of them, by image."""


def compare(
    parent: ParentVersion,
    images: Sequence[ImageRecord],
    parents: Answers,
    child: Answers,
    trained_by_parent: AbstractSet[Sha256] | None,
    renamed: Mapping[str, str],
) -> ParentComparison:
    """Both versions' answers on the images (at least one, of one split) whose class the parent has.

    Args:
        trained_by_parent: images that the parent was trained on; None where that is not known.
        renamed: from the parent's own names of classes to the dataset's.
    """
    shared = set(parents.labels) & set(child.labels)
    compared_N = np.array([image.label in shared for image in images])
    parent_right_N = _right(images, parents)[compared_N]
    right_N = _right(images, child)[compared_N]
    compared = [image for image, is_compared in zip(images, compared_N, strict=True) if is_compared]
    trained_N = None
    if trained_by_parent is not None:
        trained_N = np.array([image.sha256 in trained_by_parent for image in compared], np.bool_)
    labels_N = np.array([image.label for image in compared])
    own_names = {new: old for old, new in renamed.items()}
    return ParentComparison(
        parent=parent,
        split=images[0].split.value,
        image_count=len(compared),
        left_out_count=len(images) - len(compared),
        parent_accuracy=_share(parent_right_N),
        accuracy=_share(right_N),
        improved_count=int(np.sum(right_N & ~parent_right_N)),
        worsened_count=int(np.sum(parent_right_N & ~right_N)),
        trained_by_parent_count=None if trained_N is None else int(trained_N.sum()),
        unseen_parent_accuracy=None if trained_N is None else _share(parent_right_N[~trained_N]),
        unseen_accuracy=None if trained_N is None else _share(right_N[~trained_N]),
        added_classes=[label for label in child.labels if label not in shared],
        removed_classes=[own_names.get(label, label) for label in parents.labels if label not in shared],
        renamed_classes=dict(renamed),
        classes=[
            ClassComparison(
                label=label,
                support=int(np.sum(labels_N == label)),
                parent_recall=_share(parent_right_N[labels_N == label]),
                recall=_share(right_N[labels_N == label]),
            )
            for label in child.labels
            if label in shared
        ],
    )


def _right(images: Sequence[ImageRecord], answers: Answers) -> BoolsN:
    return np.array([image.label == label for image, label in zip(images, answers.predicted, strict=True)])


def _share(right_N: BoolsN) -> float | None:
    return float(right_N.mean()) if len(right_N) else None
