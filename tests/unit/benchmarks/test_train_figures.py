"""What the training benchmark computes from its measurements."""

from statistics import mean

import pytest

from services.contracts.jobs import Stage
from tests.benchmarks.train.arithmetic import epochs_total_s, speedup
from tests.benchmarks.train.bench import KerasRun
from tests.benchmarks.train.head import accuracy_figures, first_job_figures, speed_figures, stage_table
from tests.benchmarks.train.memory import kind_of, largest_worker
from tests.benchmarks.train.product import JobRun, StageRun


def job(scale: float = 1.0) -> JobRun:
    """Six seconds of compute that count, half a second of publishing, and 13.5 s until the answer."""
    stages = {
        Stage.PREFLIGHT: StageRun(2.0 * scale, 1.0 * scale),
        Stage.FEATURES: StageRun(4.0 * scale, 3.5 * scale),
        Stage.FIT: StageRun(3.0 * scale, 1.0 * scale),
        Stage.EVALUATE: StageRun(0.5 * scale, 0.5 * scale),
        Stage.PUBLISH: StageRun(0.5 * scale, 0.5 * scale),
    }
    return JobRun(
        started_s=2.0,
        stages=stages,
        between_s=0.25,
        ended_s=0.25,
        wall_s=2.5 + 10.0 * scale,
        answered_s=3.5 + 10.0 * scale,
        accuracy=0.9,
    )


def keras(epoch_s: float = 12.0) -> KerasRun:
    return KerasRun(
        epochs_s=[epoch_s + 3, epoch_s, epoch_s],
        validations_s=[2.0, 2.0, 2.0],
        accuracies=[0.5, 0.6, 0.7],
        process_s=3 * epoch_s + 3 + 12.0,
    )


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 15), (2, 25), (4, 46), (10, 46 + 6 * 10)], ids=["first", "measured", "all", "beyond"]
)
def test_epochs_that_were_not_measured_are_like_the_others_but_the_first(count: int, seconds: float) -> None:
    assert epochs_total_s([15, 10, 9, 12], count) == seconds


def test_a_speedup_is_the_median_of_the_rounds_ratios() -> None:
    assert speedup([1, 2, 10], [10, 30, 20]) == 10


def test_speeds_compare_like_with_like() -> None:
    figures = {figure.name: figure for figure in speed_figures([job()], [keras()])}
    assert figures["speedup_10_epochs"].value == pytest.approx((15 + 9 * 12) / 6)
    assert figures["speedup_20_epochs"].value == pytest.approx((15 + 19 * 12) / 6)
    assert figures["speedup_10_epochs_without_validation"].value == pytest.approx((13 + 9 * 10) / 6)
    assert figures["wall_speedup_10_epochs"].value == pytest.approx((12 + 15 + 9 * 12) / 13.5)


def test_the_first_job_counts_by_itself() -> None:
    figures = {figure.name: figure.value for figure in first_job_figures(job(2), [keras(), keras(), keras(24)])}
    assert figures == {"wall_speedup_10_epochs_first_job": pytest.approx(135 / 23.5), "first_job_s": 23.5}


def test_keras_is_credited_with_its_better_number_of_epochs() -> None:
    rising, falling = [0.5] * 9 + [0.80] * 10 + [0.90], [0.5] * 9 + [0.94] * 10 + [0.90]
    figures = {figure.name: figure.value for figure in accuracy_figures([0.88, 0.90], [rising, falling])}
    assert figures["accuracy_product"] == pytest.approx(0.89)
    assert figures["accuracy_keras"] == pytest.approx(mean([0.80, 0.94]))
    assert figures["accuracy_keras_20_epochs"] == pytest.approx(0.90)
    assert figures["accuracy_gain_points"] == pytest.approx(-1.0)


def test_the_parts_of_a_job_add_up_to_its_wall_time() -> None:
    *parts, everything = stage_table([job()]).rows
    walls_s = [wall for *_, wall in parts if isinstance(wall, float)]
    assert sum(walls_s) == pytest.approx(everything[-1])


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        (["ray::feature_task"], "feature_task"),
        (["ray::Trainer.wait"], "Trainer"),
        (["ray::trainer-0.1.0-6b9c:Trainer.wait"], "Trainer"),
        (["ray::trainer-0.1.0-6b9c:Trainer"], "Trainer"),
        (["ray::ServeReplica:trunk-1:trunk"], "ServeReplica"),
        (["ray::IDLE", "", ""], None),
        (["/usr/bin/python", "-m", "ray_cluster.train.attempt", "--job", "job_1"], "driver"),
        (["python -m ray_cluster.train.attempt --job job_1", "", ""], "driver"),
        (["raylet", "--node"], None),
        ([], None),
    ],
)
def test_processes_are_known_by_what_they_do(command_line: list[str], kind: str | None) -> None:
    assert kind_of(command_line) == kind


def test_only_processes_that_work_on_the_data_are_workers() -> None:
    assert largest_worker({"feature_task": 3, "Trainer": 5, "TrainController": 9}) == 5
    assert largest_worker({"TrainController": 9}) is None
