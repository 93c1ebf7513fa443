"""What a job cost, from a history whose sums can be done by hand."""

from datetime import UTC, date, datetime, timedelta

import pytest
from pydantic import BaseModel

from services.contracts.ids import DatasetId, JobId
from services.contracts.jobs import (
    EpochMetrics,
    JobEvent,
    JobEventType,
    JobState,
    Machine,
    MachineWork,
    Progress,
    Recovery,
    Stage,
    StageTiming,
    TrainerRecord,
    TrainingJob,
    TrainingJobSpec,
)
from services.contracts.prices import InstancePrice, PriceList
from services.contracts.receipts import Receipt, SavedWork
from services.training.jobs.receipt import FoundTrainer, epochs_redone, make_receipt

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
PRICES = PriceList(
    as_of=date(2026, 11, 1),
    source="made up",
    instances=[
        InstancePrice(instance_type="big", region="r", vcpus=8, on_demand=3.6, spot=1.2),
        InstancePrice(instance_type="rare", region="r", vcpus=8, on_demand=7.2),
    ],
)
SPOT = Machine(node_id="a" * 56, instance_type="big", market="spot")
ON_DEMAND = Machine(node_id="b" * 56, instance_type="big", market="on-demand")
LOCAL = Machine(node_id="c" * 56, instance_type="local", market=None)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def work(machine: Machine, begin: float, end: float, busy_s: float = 1) -> MachineWork:
    return MachineWork(machine=machine, began_at=at(begin), ended_at=at(end), busy_s=busy_s)


def stage(name: Stage, begin: float, end: float | None, *works: MachineWork, attempt: int = 1) -> StageTiming:
    finished_at = None if end is None else at(end)
    compute_s = None if end is None else 1.0
    return StageTiming(
        stage=name,
        attempt=attempt,
        started_at=at(begin),
        finished_at=finished_at,
        compute_s=compute_s,
        machines=list(works),
    )


def job(*stages: StageTiming, attempt: int = 1, ended: float | None = 1000, **spec: object) -> TrainingJob:
    return TrainingJob(
        id=JobId("job_" + "0" * 24),
        spec=TrainingJobSpec.model_validate({"dataset_id": DatasetId("ds_1"), **spec}),
        model_name="m",
        state=JobState.TRAINING if ended is None else JobState.SUCCEEDED,
        attempt=attempt,
        submission_id=None,
        progress=None,
        waiting=None,
        metrics=None,
        stages=list(stages),
        result=None,
        failure=None,
        warnings=[],
        reason="",
        created_at=START,
        updated_at=START,
        finished_at=None if ended is None else at(ended),
    )


def event(kind: JobEventType, data: BaseModel, attempt: int = 1) -> JobEvent:
    shown = data.model_dump(mode="json")
    return JobEvent(seq=1, type=kind, at=START, attempt=attempt, state=JobState.TRAINING, message="", data=shown)


def epoch(number: int) -> JobEvent:
    metrics = EpochMetrics(
        epoch=number, epochs=99, train_loss=1, train_accuracy=1, validation_loss=None, validation_accuracy=None
    )
    return event(JobEventType.EPOCH, metrics)


def recovery(after: int, lost: float | None = None) -> JobEvent:
    lost_at = None if lost is None else at(lost)
    return event(JobEventType.RECOVERY, Recovery(epoch=after, lost_at=lost_at, resumed_at=START, first_step_at=START))


def progress(stage: Stage, done: int, total: int, attempt: int = 1) -> JobEvent:
    told = Progress(stage=stage, done=done, total=total, unit="images")
    return event(JobEventType.PROGRESS, told, attempt)


def trainer(machine: Machine, begin: float, attempt: int = 1) -> FoundTrainer:
    return FoundTrainer(attempt, TrainerRecord(stage=Stage.FIT, machine=machine, began_at=at(begin)))


def receipt(of: TrainingJob, *events: JobEvent, trainers: tuple[FoundTrainer, ...] = ()) -> Receipt:
    return make_receipt(of, events, trainers, PRICES, at(2000))


def test_a_machine_costs_from_its_first_to_its_last_work_and_once_for_what_overlaps() -> None:
    found = receipt(
        job(
            stage(Stage.PREFLIGHT, 0, 100, work(SPOT, 0, 100)),
            stage(Stage.FEATURES, 100, 400, work(SPOT, 50, 400), work(ON_DEMAND, 300, 400)),
        )
    )
    assert [(each.machine, each.hours * 3600) for each in found.machines] == [(SPOT, 400), (ON_DEMAND, 100)]
    assert found.cost == pytest.approx(400 * 1.2 / 3600 + 100 * 3.6 / 3600)
    assert found.known_cost == found.cost
    assert found.on_demand_cost == pytest.approx(500 * 3.6 / 3600)
    assert (found.final, found.missing) == (True, [])


def test_a_trainer_that_was_lost_counts_until_that_was_noticed() -> None:
    found = receipt(
        job(stage(Stage.FIT, 0, 900, work(ON_DEMAND, 130, 900))),
        recovery(3, lost=120),
        trainers=(trainer(SPOT, 10), trainer(ON_DEMAND, 130)),
    )
    assert [(each.machine, each.hours * 3600) for each in found.machines] == [(SPOT, 110), (ON_DEMAND, 770)]
    assert found.recoveries == 1


def test_a_trainer_outlives_its_attempt_until_the_stage_ends_in_another() -> None:
    ended = job(stage(Stage.FIT, 0, None), stage(Stage.FIT, 100, 500, attempt=2), attempt=2)
    (only,) = receipt(ended, trainers=(trainer(SPOT, 10),)).machines
    assert only.hours * 3600 == pytest.approx(490)
    (still,) = receipt(job(stage(Stage.FIT, 0, None), ended=None), trainers=(trainer(SPOT, 10),)).machines
    assert still.hours * 3600 == pytest.approx(1990)


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (SPOT.model_copy(update={"instance_type": None}), "does not say which type"),
        (SPOT.model_copy(update={"instance_type": "other"}), "has no other"),
        (SPOT.model_copy(update={"instance_type": "rare"}), "has no spot price of rare"),
        (SPOT.model_copy(update={"market": None}), "spot or on demand"),
    ],
)
def test_what_is_not_known_is_null_with_a_reason(machine: Machine, why: str) -> None:
    found = receipt(job(stage(Stage.FEATURES, 0, 10, work(ON_DEMAND, 0, 10), work(machine, 0, 10))))
    assert found.cost is None
    assert found.known_cost == pytest.approx(0.01)
    (reason,) = found.missing
    assert why in reason


def test_ones_own_machine_costs_nothing() -> None:
    found = receipt(job(stage(Stage.FEATURES, 0, 10, work(LOCAL, 0, 10))))
    assert (found.cost, found.on_demand_cost, found.missing) == (0, 0, [])


def test_a_stage_that_broke_off_is_not_covered() -> None:
    found = receipt(
        job(stage(Stage.FEATURES, 0, None), stage(Stage.FEATURES, 50, 60, work(LOCAL, 50, 60), attempt=2), attempt=2)
    )
    assert found.cost is None
    assert found.missing == ["features of attempt 1 broke off: who worked on it is told at its end"]


def test_epochs_are_redone_from_the_checkpoint_on_each_time() -> None:
    fit, fine = (event(JobEventType.STAGE, stage(each, 0, None)) for each in (Stage.FIT, Stage.FINE_TUNE))
    again = [epoch(1), epoch(7), recovery(5), epoch(6), recovery(5), epoch(9)]
    assert epochs_redone([fit, *again, fine, epoch(1), epoch(2), recovery(0)]) == 2 + 1 + 2
    assert epochs_redone([fit, epoch(3), recovery(3), epoch(4)]) == 0


def test_what_the_caches_spared_is_counted_by_what_the_rest_took() -> None:
    told = [
        progress(Stage.PREFLIGHT, 60, 100),
        progress(Stage.PREFLIGHT, 100, 100),
        progress(Stage.FEATURES, 0, 50),
        progress(Stage.FEATURES, 30, 50),
        progress(Stage.FEATURES, 0, 20, attempt=2),
        progress(Stage.FEATURES, 20, 20, attempt=2),
    ]
    stages = (stage(Stage.PREFLIGHT, 0, 1, work(SPOT, 0, 1, 4)), stage(Stage.FEATURES, 0, 1, work(SPOT, 0, 1, 10)))
    saved = receipt(job(*stages, attempt=2), *told).saved
    assert saved == SavedWork(
        files=100, files_known=60, images_computed=50, images_cached=50, core_s_saved=60 * 4 / 40 + 50 * 10 / 50
    )
    two_trunks = receipt(job(*stages, train="top_blocks:2"), *told).saved
    assert (two_trunks.images_cached, two_trunks.core_s_saved) == (None, None)
    nothing = [progress(Stage.PREFLIGHT, 0, 100), progress(Stage.PREFLIGHT, 100, 100), progress(Stage.FEATURES, 0, 100)]
    assert receipt(job(*stages), *nothing).saved.core_s_saved == 0
    all_of_it = [progress(Stage.PREFLIGHT, 0, 100), progress(Stage.FEATURES, 0, 0)]
    assert receipt(job(*stages), *all_of_it).saved.core_s_saved is None
