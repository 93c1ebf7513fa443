"""The recipe's arithmetic: standardising, weighting, and folding it all into a tail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train import head_recipe
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
