"""Fine-tuning goes on after any step as if nothing had happened, and keeps the best epoch."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.train import checkpoints, fine_tune_loop, fine_tune_schedule, fine_tune_state, fit_state
from ray_cluster.train.adam import Vector32
from ray_cluster.train.fine_tune_loop import FineTuneSettings, FineTuneState, StepResult
from ray_cluster.train.fit_loop import Quality
from ray_cluster.train.fit_state import FittedHead
from ray_cluster.vision.network_tails import TrainedNetwork
from ray_cluster.vision.tails import Tail
from services.contracts.ids import JobId
from services.contracts.models import Fingerprint, FitReport, WeightDecayTrial
from services.runtime.objects import open_store

DIM, IMAGES, BATCH = 5, 22, 4
BASE_STEP = 17
TRIAL = WeightDecayTrial(weight_decay=0.3, validation_loss=1.5, validation_accuracy=0.5, epochs=4)
HEAD = FittedHead(
    Tail(np.eye(2, dtype=np.float32), np.ones(2, np.float32)),
    FitReport(epochs=17, weight_decay=0.3, trials=[TRIAL], temperature=1.25),
)
FINGERPRINT = Fingerprint(device="cpu", trunk_engine="e", tensorflow="2", keras="3", threads=1)


class Regression:
    """Logistic regression on a few points; validation points come from elsewhere, so they turn before training does."""

    image_count = IMAGES
    block_parameters = 2

    def __init__(self, seed: int, *, validates: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((IMAGES, DIM)).astype(np.float32)
        self.y = rng.integers(0, 2, IMAGES).astype(np.float32)
        self.v = rng.standard_normal((12, DIM)).astype(np.float32) if validates else None
        self.v_y = rng.integers(0, 2, 12).astype(np.float32)

    def step(self, epoch: int, step: int, params_P: Vector32) -> StepResult:
        rows = fine_tune_schedule.order(3, epoch, IMAGES)[step * BATCH : (step + 1) * BATCH]
        x, y = self.x[rows], self.y[rows]
        loss, accuracy = self._quality(x, y, params_P)
        gradient = x.T @ (self._probability(x, params_P) - y) / len(rows)
        return StepResult(loss, accuracy, gradient.astype(np.float32))

    def validation_quality(self, params_P: Vector32) -> Quality | None:
        return None if self.v is None else Quality(*self._quality(self.v, self.v_y, params_P))

    def _probability(self, x: np.ndarray, params_P: Vector32) -> np.ndarray:
        return 1 / (1 + np.exp(-(x @ params_P)))

    def _quality(self, x: np.ndarray, y: np.ndarray, params_P: Vector32) -> tuple[float, float]:
        p = self._probability(x, params_P)
        loss = -np.log(np.where(y == 1, p, 1 - p)).mean()
        return float(loss), float(((p > 0.5) == (y == 1)).mean())


def wanted(epochs: int, patience: int) -> FineTuneSettings:
    return FineTuneSettings(epochs, BATCH, learning_rate=0.3, block_rate=0.1, patience=patience)


def go(problem: Regression, how: FineTuneSettings, state: FineTuneState | None = None) -> list[FineTuneState]:
    state = state or fine_tune_loop.begin(problem, np.zeros(DIM, np.float32), BASE_STEP)
    states = [state]
    while not states[-1].done:
        states.append(fine_tune_loop.advance(states[-1], problem, how))
    return states


def through_a_checkpoint(state: FineTuneState, folder: Path) -> FineTuneState:
    store, job = open_store(folder.as_uri()), JobId("job_1")
    checkpoints.commit(store, job, 1, fine_tune_state.to_snapshot(state, HEAD), FINGERPRINT)
    found = checkpoints.load_newest(store, job)
    assert found is not None
    head = fit_state.finished_head(found)
    assert head is not None, "the fit's result is found in what came after it"
    assert (head.tail.sha256(), head.report) == (HEAD.tail.sha256(), HEAD.report)
    restored = fine_tune_state.from_checkpoint(found)
    assert restored is not None
    assert restored.step == state.step
    return restored


@given(seed=st.integers(0, 1000), epochs=st.integers(1, 6), patience=st.integers(1, 4), where=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_resumed_after_any_step_it_ends_with_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, seed: int, epochs: int, patience: int, where: float
) -> None:
    problem, how = Regression(seed), wanted(epochs, patience)
    undisturbed = go(problem, how)
    stopped = undisturbed[int(where * (len(undisturbed) - 1))]
    resumed = go(problem, how, through_a_checkpoint(stopped, tmp_path_factory.mktemp("bucket")))[-1]
    assert resumed.best_params_P.tobytes() == undisturbed[-1].best_params_P.tobytes()
    assert resumed.optimizer.params_P.tobytes() == undisturbed[-1].optimizer.params_P.tobytes()
    assert resumed.history == undisturbed[-1].history


def test_the_best_epoch_counts_and_patience_ends_it() -> None:
    states = go(Regression(3), wanted(60, 4))
    last = states[-1]
    losses = [metrics.validation_loss for metrics in last.history]
    start = Regression(3).validation_quality(np.zeros(DIM, np.float32))
    assert start is not None
    candidates = [start.loss, *(loss for loss in losses if loss is not None)]
    best = int(np.argmin(candidates))
    assert (last.best_epoch, last.best_loss) == (best, candidates[best])
    assert last.epoch == best + 4 < 60
    ends = {state.epoch: state for state in states if state.step_in_epoch == 0}
    assert last.best_params_P.tobytes() == ends[best].optimizer.params_P.tobytes()


def test_nothing_to_validate_on() -> None:
    last = go(Regression(1, validates=False), wanted(3, 1))[-1]
    assert last.epoch == 3
    assert all(metrics.validation_loss is None for metrics in last.history)
    assert last.best_params_P.tobytes() == last.optimizer.params_P.tobytes()


def test_blocks_learn_more_slowly_than_the_head() -> None:
    before, after = go(Regression(1), wanted(1, 1))[:2]
    change_P = np.abs(after.optimizer.params_P - before.optimizer.params_P)
    assert change_P[:2].max() == pytest.approx(0.1 * change_P[2:].max(), rel=1e-3)


def test_epochs_measure_every_image_once() -> None:
    problem = Regression(2)
    states = go(problem, wanted(1, 1))
    steps = [problem.step(0, step, state.optimizer.params_P) for step, state in enumerate(states[:-1])]
    sizes = [4, 4, 4, 4, 4, 2]
    expected = sum(size * each.loss for size, each in zip(sizes, steps, strict=True)) / IMAGES
    assert states[-1].history[0].train_loss == pytest.approx(expected)


def test_a_finished_checkpoint_has_the_network(tmp_path: Path) -> None:
    network = TrainedNetwork(
        b"flat", {"0000.kernel": np.ones((2, 2), np.float32), "head.bias": np.zeros(2, np.float32)}
    )
    last = go(Regression(1), wanted(1, 1))[-1]
    store, job = open_store(tmp_path.as_uri()), JobId("job_1")
    checkpoints.commit(store, job, 1, fine_tune_state.finished_snapshot(last, HEAD, network), FINGERPRINT)
    found = checkpoints.load_newest(store, job)
    assert found is not None
    read = fine_tune_state.finished_network(found)
    assert read is not None
    assert (read.flatbuffer, read.sha256()) == (b"flat", network.sha256())
