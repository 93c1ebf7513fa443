"""How good a head is on a split. NumPy only.

Array axes: N image, K class.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from services.contracts.datasets import ImageRecord
from services.contracts.models import ClassReport, Evaluation

CALIBRATION_BINS = 15
_TOP = 5
_LEAST_PROBABILITY = 1e-12


def evaluate(
    split: str,
    labels: Sequence[str],
    truths_N: npt.NDArray[np.int64],
    probabilities_NK: npt.NDArray[np.float32],
    uncalibrated_NK: npt.NDArray[np.float32] | None,
) -> Evaluation:
    """Compares probabilities with the true labels (indices into `labels`), and what they were before the temperature
    where there is one.

    N is at least 1.
    """
    predictions_N = probabilities_NK.argmax(axis=1)
    right_N = predictions_N == truths_N
    uncalibrated_error = None
    if uncalibrated_NK is not None:
        uncalibrated_error = calibration_error(uncalibrated_NK.max(axis=1).astype(np.float64), right_N)
    confusion_KK = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion_KK, (truths_N, predictions_N), 1)
    of_truth_N = probabilities_NK[np.arange(len(truths_N)), truths_N].astype(np.float64)
    return Evaluation(
        split=split,
        image_count=len(truths_N),
        accuracy=float(np.mean(right_N)),
        loss=float(-np.log(np.maximum(of_truth_N, _LEAST_PROBABILITY)).mean()),
        calibration_error=calibration_error(probabilities_NK.max(axis=1).astype(np.float64), right_N),
        uncalibrated_error=uncalibrated_error,
        classes=[_report(label, index, confusion_KK) for index, label in enumerate(labels)],
        confusion_matrix=confusion_KK.tolist(),
    )


def calibration_error(confidences_N: npt.NDArray[np.float64], right_N: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over equal-width bins (Guo et al., On Calibration of Modern Neural Networks, 2017,
    section 2): the mean gap between confidence and accuracy, weighted by the bins' share of the images."""
    bins_N = np.minimum((confidences_N * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins_N, confidences_N - right_N.astype(np.float64), CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidences_N))


def prediction_lines(
    images: Sequence[ImageRecord], labels: Sequence[str], probabilities_NK: npt.NDArray[np.float32]
) -> Iterator[str]:
    """One JSON line per image: path, true label, and the most probable labels, best first."""
    for image, probabilities_K in zip(images, probabilities_NK, strict=True):
        best = np.argsort(-probabilities_K, kind="stable")[:_TOP]
        top = [{"label": labels[index], "probability": float(probabilities_K[index])} for index in best]
        line = {"path": image.path, "sha256": image.sha256, "label": image.label, "predictions": top}
        yield json.dumps(line, ensure_ascii=False)


def _report(label: str, index: int, confusion_KK: npt.NDArray[np.int64]) -> ClassReport:
    hits = int(confusion_KK[index, index])
    support = int(confusion_KK[index].sum())
    predicted = int(confusion_KK[:, index].sum())
    return ClassReport(
        label=label,
        precision=hits / predicted if predicted else None,
        recall=hits / support if support else None,
        f1=2 * hits / (predicted + support) if predicted + support else None,
        support=support,
    )
