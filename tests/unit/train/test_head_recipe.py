"""The recipe's arithmetic: standardising, weighting, and folding it all into a tail."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train import head_recipe
from ray_cluster.vision import images
from ray_cluster.vision.tails import Tail
from services.contracts.ids import DatasetId
from services.contracts.jobs import TrainingJobSpec


@given(st.integers(0, 10_000))
def test_the_tail_gives_raw_features_the_logits_of_standardised_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features_ND = (rng.random((30, 7)) * rng.uniform(0, 5, 7)).astype(np.float32)
    features_ND[:, 0] = 0  # a feature that is never active
    standard = head_recipe.standardisation(features_ND)
    params_P = rng.standard_normal(head_recipe.parameter_count(7, 3))
    kernel_DK, bias_K = head_recipe.split_params(params_P, 7, 3)
    wanted = (features_ND - standard.mean_D) / standard.scale_D @ kernel_DK + bias_K
    np.testing.assert_allclose(head_recipe.fold(params_P, standard).logits(features_ND), wanted, rtol=1e-4, atol=1e-4)


def weights(class_weighting: str) -> np.ndarray:
    spec = TrainingJobSpec.model_validate({"dataset_id": DatasetId("ds"), "class_weighting": class_weighting})
    return head_recipe.row_weights(np.array([0, 0, 0, 1]), 3, spec)


def test_rows_weigh_the_same_by_default() -> None:
    assert weights("none").tolist() == [0.25] * 4


def test_balanced_classes_weigh_the_same_together() -> None:
    assert weights("balanced") == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


@given(st.integers(0, 10_000))
def test_a_start_from_the_parents_tail_gives_its_logits_by_name(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features_ND = (rng.random((30, 7)) * 3).astype(np.float32)
    standard = head_recipe.standardisation(features_ND[:20])
    tail = Tail(rng.standard_normal((7, 3)).astype(np.float32), rng.standard_normal(3).astype(np.float32))
    start = head_recipe.start_from(tail, ["c", "gone", "a"], ["a", "b", "c"], standard)
    assert start is not None
    logits_NK = head_recipe.fold(start, standard).logits(features_ND)
    np.testing.assert_allclose(logits_NK[:, [2, 0]], tail.logits(features_ND)[:, [0, 2]], rtol=1e-3, atol=1e-3)
    assert np.ptp(logits_NK[:, 1]) == 0  # nothing is known of "b"


def test_a_parent_without_a_common_class_gives_no_start() -> None:
    tail = Tail(np.ones((7, 2), np.float32), np.ones(2, np.float32))
    standard = head_recipe.Standardisation(np.zeros(7), np.ones(7))
    assert head_recipe.start_from(tail, ["x", "y"], ["a", "b"], standard) is None


def test_every_augmentation_begins_with_the_image_itself_and_names_views_that_exist() -> None:
    assert set(head_recipe.VIEWS) == set(get_args(TrainingJobSpec.model_fields["augmentation"].annotation))
    for views in head_recipe.VIEWS.values():
        assert views[0] == 0
        assert len(set(views)) == len(views)
        assert set(views) <= set(range(len(images.VIEWS)))
