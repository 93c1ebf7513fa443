"""What a backbone's features are worth: measured with the job's own head on images that it was not trained on."""

from typing import Any

import numpy as np
import pytest

from ray_cluster.train.probe import score
from services.contracts.jobs import TrainingJobSpec

CLASSES, COUNT, DIM = 3, 90, 150


def spec(**fields: Any) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({"dataset_id": "ds_1", **fields})


def features(signal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise in more dimensions than there are images, with the class in it as far as `signal` says; and the folds."""
    rng = np.random.default_rng(0)
    labels_N = np.arange(COUNT) % CLASSES
    features_ND = rng.standard_normal((COUNT, DIM)).astype(np.float32)
    features_ND += signal * np.tile(np.eye(CLASSES, dtype=np.float32)[labels_N], DIM // CLASSES)
    return features_ND, labels_N, np.arange(COUNT) // CLASSES % 5


def test_nothing_is_scored_that_the_head_has_learned_from() -> None:
    """A head could tell all of them apart if it had seen them."""
    found = score(*features(0), CLASSES, spec())
    assert found.image_count == COUNT
    assert found.right_count / COUNT < 0.55
    assert found.loss > 0.9 * np.log(CLASSES)


@pytest.mark.parametrize("fields", [{}, {"weight_decay": "auto"}, {"early_stopping": {"patience": 2}}])
def test_the_better_the_features_the_better_the_score_and_always_the_same(fields: dict[str, Any]) -> None:
    scores = [score(*features(signal), CLASSES, spec(**fields)) for signal in (0, 0.5, 2)]
    assert [each.right_count for each in scores] == sorted({each.right_count for each in scores})
    assert [each.loss for each in scores] == sorted({each.loss for each in scores}, reverse=True)
    assert scores[-1].right_count == COUNT
    assert score(*features(0.5), CLASSES, spec(**fields)) == scores[1]


def test_a_fold_may_be_empty_and_a_class_may_be_in_one_fold_only() -> None:
    features_ND, labels_N, _ = features(2)
    folds_N = np.where(labels_N == 2, 1, np.arange(COUNT) // CLASSES % 2)
    found = score(features_ND, labels_N, folds_N, CLASSES, spec())
    assert found.image_count == COUNT
    assert COUNT / 3 <= found.right_count <= COUNT * 2 / 3
