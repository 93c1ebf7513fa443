"""The fit goes on after any epoch as if nothing had happened, and ends with the weights it promises."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.train import checkpoints, fit_loop, fit_state, weight_search
from ray_cluster.train.checkpoints import Snapshot
from ray_cluster.train.fit_loop import FitSettings, FitState, Phase, Quality
from ray_cluster.train.lbfgs import Objective, Vector
from ray_cluster.vision.tails import Tail
from services.contracts.ids import JobId
from services.contracts.models import Fingerprint
from services.runtime.objects import open_store

DIM, CLASSES = 6, 3


class NumpyProblem:
    """A small softmax regression; validation data come from another distribution, so they turn before training does."""

    parameter_count = kernel_size = DIM * CLASSES

    def __init__(self, seed: int, *, validates: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((40, DIM))
        self.y = rng.integers(0, CLASSES, 40)
        self.v = rng.standard_normal((20, DIM)) if validates else None
        self.v_y = rng.integers(0, CLASSES, 20)

    def _rows(self, phase: Phase) -> tuple[np.ndarray, np.ndarray]:
        if phase is Phase.FINAL:
            assert self.v is not None
            return np.concatenate([self.x, self.v]), np.concatenate([self.y, self.v_y])
        return self.x, self.y

    def start(self, phase: Phase) -> Vector:
        return np.zeros(self.parameter_count)

    def objective(self, phase: Phase) -> Objective:
        x, y = self._rows(phase)
        targets = np.eye(CLASSES)[y]

        def evaluate(params_P: Vector) -> tuple[float, Vector]:
            log_p = self._log_p(x, params_P)
            loss = -(targets * log_p).sum() / len(x)
            gradient = x.T @ (np.exp(log_p) - targets) / len(x)
            return float(loss), gradient.ravel()

        return evaluate

    def training_quality(self, phase: Phase, params_P: Vector) -> Quality:
        return self._quality(*self._rows(phase), params_P)

    def validation_quality(self, params_P: Vector) -> Quality | None:
        return None if self.v is None else self._quality(self.v, self.v_y, params_P)

    def _log_p(self, x: np.ndarray, params_P: Vector) -> np.ndarray:
        z = x @ params_P.reshape(DIM, CLASSES)
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    def _quality(self, x: np.ndarray, y: np.ndarray, params_P: Vector) -> Quality:
        log_p = self._log_p(x, params_P)
        return Quality(float(-log_p[np.arange(len(y)), y].mean()), float((log_p.argmax(axis=1) == y).mean()))


def go(problem: NumpyProblem, wanted: FitSettings, state: FitState | None = None) -> list[FitState]:
    states: list[FitState] = []
    state = state or fit_loop.begin(problem, wanted)
    while not state.done:
        state = fit_loop.advance(state, problem, wanted)
        states.append(state)
    return states


all_settings = st.builds(
    FitSettings,
    max_epochs=st.integers(1, 40),
    tolerance=st.just(1e-9),
    patience=st.none() | st.integers(1, 5),
    refit=st.booleans(),
    weight_decays=st.sampled_from([(0.01,), (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)]),
)


def through_a_checkpoint(state: FitState, folder: Path) -> FitState:
    store, job = open_store(folder.as_uri()), JobId("job_1")
    fingerprint = Fingerprint(device="cpu", trunk_engine="e", tensorflow="2", keras="3", threads=1)
    checkpoints.commit(store, job, 1, fit_state.to_snapshot(state), fingerprint)
    found = checkpoints.load_newest(store, job)
    assert found is not None
    return fit_state.from_checkpoint(found)


@given(seed=st.integers(0, 1000), wanted=all_settings, where=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_fit_resumed_from_any_epoch_ends_with_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, seed: int, wanted: FitSettings, where: float
) -> None:
    problem = NumpyProblem(seed)
    undisturbed = go(problem, wanted)
    stopped = undisturbed[int(where * (len(undisturbed) - 1))]
    restored = through_a_checkpoint(stopped, tmp_path_factory.mktemp("bucket"))
    resumed = go(problem, wanted, restored)[-1] if restored.phase is not Phase.DONE else restored
    assert resumed.result().tobytes() == undisturbed[-1].result().tobytes()
    assert resumed.history == undisturbed[-1].history
    assert resumed.trials == undisturbed[-1].trials


@given(seed=st.integers(0, 1000), wanted=all_settings)
@settings(max_examples=40, deadline=None)
def test_epochs_are_numbered_without_gaps_and_bounded(seed: int, wanted: FitSettings) -> None:
    history = go(NumpyProblem(seed), wanted)[-1].history
    assert [metrics.epoch for metrics in history] == list(range(1, len(history) + 1))
    phases = (2 if wanted.refit else 1) + (len(wanted.weight_decays) if wanted.searches else 0)
    assert len(history) <= history[0].epochs == wanted.max_epochs * phases


def test_early_stopping_keeps_the_epoch_of_the_lowest_validation_loss() -> None:
    problem = NumpyProblem(3)
    states = go(problem, FitSettings(200, 1e-12, patience=3, refit=False, weight_decays=(0.01,)))
    losses = [metrics.validation_loss for metrics in states[-1].history]
    assert None not in losses
    best = int(np.argmin([loss for loss in losses if loss is not None]))
    assert best < len(losses) - 1, "the fit went on past the best epoch"
    assert states[-1].result().tobytes() == states[best].optimizer.params_P.tobytes()


def test_without_early_stopping_the_fit_reaches_the_optimum() -> None:
    problem = NumpyProblem(3)
    result = go(problem, FitSettings(500, 1e-12, patience=None, refit=False, weight_decays=(0.01,)))[-1].result()
    assert np.linalg.norm(fit_loop.penalised(problem, Phase.SELECT, 0.01)(result)[1]) < 1e-4


def test_refitting_learns_from_the_validation_images_too() -> None:
    problem = NumpyProblem(3)
    result = go(problem, FitSettings(500, 1e-12, patience=None, refit=True, weight_decays=(0.01,)))[-1].result()
    assert np.linalg.norm(fit_loop.penalised(problem, Phase.FINAL, 0.01)(result)[1]) < 1e-4


def test_nothing_to_validate_on() -> None:
    wanted = FitSettings(30, 1e-9, patience=2, refit=False, weight_decays=(0.01,))
    last = go(NumpyProblem(1, validates=False), wanted)[-1]
    assert all(metrics.validation_loss is None for metrics in last.history)
    assert last.result().tobytes() == last.optimizer.params_P.tobytes()


GRID = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def test_the_search_finds_what_training_each_penalty_by_itself_finds() -> None:
    problem = NumpyProblem(3)
    searched = go(problem, FitSettings(500, 1e-12, patience=None, refit=True, weight_decays=GRID))[-1]
    losses = []
    for weight_decay in GRID:
        alone = go(problem, FitSettings(500, 1e-12, patience=None, refit=False, weight_decays=(weight_decay,)))[-1]
        quality = problem.validation_quality(alone.result())
        assert quality is not None
        losses.append(quality.loss)
    found = [trial.validation_loss for trial in searched.trials]
    assert found == pytest.approx(losses[: len(found)], rel=0.01)
    assert searched.weight_decay == GRID[int(np.argmin(losses))]
    gradient = fit_loop.penalised(problem, Phase.FINAL, searched.weight_decay)(searched.result())[1]
    assert np.linalg.norm(gradient) < 1e-4


def test_the_search_stops_where_it_only_gets_worse() -> None:
    trials = go(NumpyProblem(3), FitSettings(500, 1e-9, patience=None, refit=False, weight_decays=GRID))[-1].trials
    losses = [trial.validation_loss for trial in trials]
    assert len(trials) < len(GRID)
    assert int(np.argmin(losses)) == len(trials) - 1 - weight_search.PATIENCE


def test_a_changed_penalty_is_the_state_that_evaluating_anew_gives() -> None:
    problem = NumpyProblem(5)
    state = go(problem, FitSettings(8, 1e-12, patience=None, refit=False, weight_decays=(0.1,)))[-1].optimizer
    changed = weight_search.reweight(state, problem.kernel_size, 0.1, 0.02)
    loss, gradient_P = fit_loop.penalised(problem, Phase.SELECT, 0.02)(state.params_P)
    assert changed.loss == pytest.approx(loss)
    np.testing.assert_allclose(changed.gradient_P, gradient_P, atol=1e-12)
    assert (changed.iteration, changed.converged) == (0, False)
    assert len(changed.steps_MP) == len(changed.gradient_steps_MP) > 0


def test_the_last_step_alone_is_not_the_result(tmp_path: Path) -> None:
    store, job = open_store(tmp_path.as_uri()), JobId("job_1")
    fingerprint = Fingerprint(device="cpu", trunk_engine="e", tensorflow="2", keras="3", threads=1)
    last = go(NumpyProblem(1), FitSettings(5, 1e-9, patience=2, refit=False, weight_decays=GRID))[-1]
    for tail in (None, Tail(np.eye(2, dtype=np.float32), np.ones(2, np.float32))):
        checkpoints.commit(store, job, 1, fit_state.to_snapshot(last, tail, 1.5), fingerprint)
        found = checkpoints.load_newest(store, job)
        assert found is not None
        head = fit_state.finished_head(found)
        assert (head is None) is (tail is None)
        assert fit_state.from_checkpoint(found).done
    assert head is not None
    assert (head.report.epochs, head.report.weight_decay) == (last.epoch, last.weight_decay)
    assert (head.report.trials, head.report.temperature) == (list(last.trials), 1.5)


def test_a_snapshot_does_not_change_with_the_loop() -> None:
    problem = NumpyProblem(1)
    state = fit_loop.begin(problem, FitSettings(9, 1e-9, None, refit=False, weight_decays=(0.01,)))
    taken: Snapshot = fit_state.to_snapshot(state)
    state.optimizer.params_P[:] = 7
    assert not taken.tensors["optimizer.params_P"].any()
