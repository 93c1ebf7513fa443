"""How a head is trained: softmax regression on standardised features, with an L2 penalty, to its optimum.

Features are standardised with the training images' mean and standard deviation plus `STD_FLOOR`, so features that are
nearly always zero do not blow up. The objective is the mean cross-entropy of the (weighted) rows plus
weight_decay / 2 times the squared kernel; it is strictly convex in the kernel, so its optimum does not depend on a
seed, an order or a start. L-BFGS finds it in 30 to 60 epochs, where an epoch is one iteration: mostly one pass over
the cached features. Retraining starts from the parent's weights, which saves epochs.

The tail's logits are divided by a temperature (`calibration`), fitted on the validation images with the head that was
not trained on them; the head that is fitted again gets the same one.

Where the weight decay is to be found (`auto`), `WEIGHT_DECAYS` are tried from the strongest to the weakest, each from
where the one before ended (`weight_search`), and the one of the lowest validation loss is trained with.

Where the validation images were held out by us and there is a test split to measure on, the head is then fitted again
on training and validation images together: it would be a waste not to learn from them.

Test accuracy with MobileNetV2, weight_decay 0.05, augmentation off, any seed: 0.740 on TrashNet (480 training images,
6 classes) and 0.936 on the Grocery Store produce (386, 10 classes). Mirrored views: 0.720 and 0.934. AdamW on
minibatches: 0.653 to 0.733 and 0.846 to 0.934, depending on seed and rate. `auto`, seeds 0 to 2: 0.747, 0.740, 0.727
and 0.934 each, in 0.8 to 1.8 times as many epochs as one fit; so it is not the default. The temperature lowers the
calibration error from 0.16 to 0.12 to 0.15, and from 0.07 to 0.03 to 0.04.

Array axes: N row, D feature, K class, P parameter (kernel, then bias).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_cluster.train.lbfgs import Vector
from ray_cluster.vision.tails import Tail
from services.contracts.jobs import DEFAULT_WEIGHT_DECAY, TrainingJobSpec

STD_FLOOR = 0.01
TOLERANCE = 1e-6
"""L-BFGS ends when an iteration lowers the objective by less than this share of it."""
WEIGHT_DECAYS = tuple(float(10.0 ** (exponent / 4)) for exponent in range(2, -15, -1))
"""What `auto` tries: four to a power of ten, from 3.2 to 0.0003."""
VIEWS = {"off": (0,), "light": (0, 1), "strong": tuple(range(8))}
"""By `augmentation`: the views of each training image, indices of `images.VIEWS`."""


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Features minus mean, divided by scale."""

    mean_D: npt.NDArray[np.float64]
    scale_D: npt.NDArray[np.float64]


def standardisation(features_ND: npt.NDArray[np.float32]) -> Standardisation:
    """Of these rows (the training images as they are, without their mirror images)."""
    return Standardisation(
        features_ND.mean(axis=0, dtype=np.float64), features_ND.std(axis=0, dtype=np.float64) + STD_FLOOR
    )


def weight_decays(spec: TrainingJobSpec, *, validates: bool) -> tuple[float, ...]:
    """What to train with, strongest first: one value, or several of which the validation images choose."""
    if spec.weight_decay != "auto":
        return (spec.weight_decay,)
    return WEIGHT_DECAYS if validates else (DEFAULT_WEIGHT_DECAY,)


def row_weights(labels_N: npt.NDArray[np.int64], class_count: int, spec: TrainingJobSpec) -> npt.NDArray[np.float64]:
    """The share of each row in the objective, [N], sums to 1. `balanced` gives every class present the same share."""
    counts_K = np.bincount(labels_N, minlength=class_count)
    if spec.class_weighting == "balanced":
        return 1.0 / (counts_K[labels_N] * np.count_nonzero(counts_K))
    return np.full(len(labels_N), 1.0 / len(labels_N))


def parameter_count(feature_dim: int, class_count: int) -> int:
    """P."""
    return (feature_dim + 1) * class_count


def split_params(
    params_P: Vector, feature_dim: int, class_count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(kernel [D, K], bias [K]), views into the vector."""
    size = feature_dim * class_count
    return params_P[:size].reshape(feature_dim, class_count), params_P[size:]


def fold(params_P: Vector, standard: Standardisation, temperature: float = 1.0) -> Tail:
    """The tail that maps raw features to the logits, divided by `temperature`, that these parameters give standardised
    ones."""
    feature_dim = len(standard.mean_D)
    kernel_DK, bias_K = split_params(params_P, feature_dim, len(params_P) // (feature_dim + 1))
    folded_DK = kernel_DK / standard.scale_D[:, np.newaxis]
    bias_K = (bias_K - np.einsum("d,dk->k", standard.mean_D, folded_DK)) / temperature
    return Tail(np.ascontiguousarray(folded_DK / temperature, np.float32), np.ascontiguousarray(bias_K, np.float32))


def start_from(
    tail: Tail, tail_labels: Sequence[str], labels: Sequence[str], standard: Standardisation, temperature: float = 1.0
) -> Vector | None:
    """Parameters, [P], that `fold` makes the tail of again, for each label that the tail has too.

    The other labels begin without a kernel and with the known labels' mean bias. None where the tail has none of them.
    """
    column = {label: index for index, label in enumerate(tail_labels)}
    known = [label in column for label in labels]
    if not any(known):
        return None
    raw_DK = tail.kernel_DK.astype(np.float64) * temperature
    bias_of_tail = tail.bias_K.astype(np.float64) * temperature + np.einsum("d,dk->k", standard.mean_D, raw_DK)
    params_P = np.zeros(parameter_count(tail.feature_dim, len(labels)))
    kernel_DK, bias_K = split_params(params_P, tail.feature_dim, len(labels))
    from_tail = [column[label] for label in labels if label in column]
    kernel_DK[:, known] = raw_DK[:, from_tail] * standard.scale_D[:, np.newaxis]
    bias_K[:] = bias_of_tail[from_tail].mean()
    bias_K[known] = bias_of_tail[from_tail]
    return params_P
