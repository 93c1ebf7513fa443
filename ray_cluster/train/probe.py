"""What a backbone is worth to a job: heads on its features of a sample of the images, scored on held-out ones.

The images are held out in folds, one after the other, and a head is trained on the others as the job trains its own
(`head_recipe`), on the images as they are: views would cost the trunk's time again. With `weight_decay: auto` each
fold's search looks at the images held out, as the job's looks at its validation images; that flatters all candidates
alike.

Array axes: N image, D feature, K class.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_cluster.train import fingerprints, fit_loop, head_loop, head_recipe
from ray_cluster.train.features import FeatureIndex, FeatureKey
from ray_cluster.train.fit_loop import Phase
from ray_cluster.train.probe_sample import FOLDS, ProbeSample
from ray_cluster.train.softmax_problem import HeadProblem, Rows
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """On all images, each held out once."""

    image_count: int
    right_count: int
    loss: float
    """Mean cross-entropy in nats."""


def probe(
    store: ObjectStore, trunk: TrunkManifest, engine: str, sample: ProbeSample, spec: TrainingJobSpec
) -> ProbeScore:
    """Scores a trunk whose features of the sample are all cached, as the engine of that id computed them."""
    keys = [FeatureKey(image.sha256, 0) for image in sample.images]
    features_ND = FeatureIndex.load(store, trunk.trunk_id, engine).read(store, keys, trunk.feature_dim)
    folds_N = np.array(sample.folds, np.int64)
    return score(features_ND.astype(np.float32, copy=False), sample.classes(), folds_N, len(sample.labels), spec)


def score(
    features_ND: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64],
    folds_N: npt.NDArray[np.int64],
    class_count: int,
    spec: TrainingJobSpec,
) -> ProbeScore:
    """Trains a head for each fold that has images. Equal arguments give equal bits. At least two folds have some."""
    fingerprints.make_deterministic()
    right_count, loss = 0, 0.0
    for fold in range(FOLDS):
        held_N = folds_N == fold
        if not held_N.any():
            continue
        right_N, losses_N = _held_out(features_ND, labels_N, held_N, class_count, spec)
        right_count += int(right_N.sum())
        loss += float(losses_N.sum())
    return ProbeScore(len(labels_N), right_count, loss / len(labels_N))


def _held_out(
    features_ND: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64],
    held_N: npt.NDArray[np.bool_],
    class_count: int,
    spec: TrainingJobSpec,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """(whether right, cross-entropy in nats) of each image held out, by a head trained on the others."""
    trained_ND, trained_N = features_ND[~held_N], labels_N[~held_N]
    rows = Rows(trained_ND, trained_N, head_recipe.row_weights(trained_N, class_count, spec))
    count = int(held_N.sum())
    held_out = Rows(features_ND[held_N], labels_N[held_N], np.full(count, 1.0 / count))
    training = {Phase.SELECT: (rows, head_recipe.standardisation(trained_ND))}
    problem = HeadProblem(training, held_out, class_count, {})
    settings = head_loop.settings_of(spec, refit=False, validates=True)
    state = fit_loop.begin(problem, settings)
    while not state.done:
        state = fit_loop.advance(state, problem, settings)
    logits = problem.validation_logits(state.result())
    assert logits is not None  # noqa: S101
    logits_NK = logits[0].astype(np.float64)
    logits_NK -= logits_NK.max(axis=1, keepdims=True)
    losses_N = np.log(np.exp(logits_NK).sum(axis=1)) - logits_NK[np.arange(count), held_out.labels_N]
    return logits[0].argmax(axis=1) == held_out.labels_N, losses_N
