"""What a job cost: computed from its stages, events and trainers' records, and a price list. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from services.contracts.jobs import (
    EpochMetrics,
    JobEvent,
    JobEventType,
    Machine,
    Progress,
    Recovery,
    Stage,
    StageTiming,
    TrainerRecord,
    TrainingJob,
)
from services.contracts.prices import LOCAL, PriceList
from services.contracts.receipts import MachineCost, Receipt, SavedWork

SPOT, ON_DEMAND = "spot", "on-demand"
_TRAINS = (Stage.FIT, Stage.FINE_TUNE)
_SECONDS_PER_HOUR = 3600
_PROGRESS, _EPOCH, _RECOVERY = TypeAdapter(Progress), TypeAdapter(EpochMetrics), TypeAdapter(Recovery)


@dataclass(frozen=True, slots=True)
class FoundTrainer:
    """A trainer's record, and the attempt that it is of."""

    attempt: int
    record: TrainerRecord


def make_receipt(
    job: TrainingJob, events: Sequence[JobEvent], trainers: Iterable[FoundTrainer], prices: PriceList, now: datetime
) -> Receipt:
    """The job's receipt as of now. `events` are all of the job's, in order."""
    trainers = list(trainers)
    recoveries = [event for event in events if event.type is JobEventType.RECOVERY]
    spans = [*_stage_spans(job.stages), *_trainer_spans(job, trainers, recoveries, now)]
    machines = [_cost_of(span, prices) for span in _joined(spans)]
    missing = [
        *dict.fromkeys(each.unknown for each in machines if each.unknown),
        *_uncovered(job, {found.record.stage for found in trainers}),
    ]
    costs = [each.cost for each in machines]
    on_demand = [each.on_demand_cost for each in machines]
    return Receipt(
        job_id=job.id,
        final=job.state.is_terminal,
        currency=prices.currency,
        prices_as_of=prices.as_of,
        prices_source=prices.source,
        machines=machines,
        cost=None if missing else _sum(costs),
        known_cost=sum(cost for cost in costs if cost is not None),
        on_demand_cost=None if missing else _sum(on_demand),
        missing=missing,
        attempts=job.attempt,
        recoveries=len(recoveries),
        epochs_redone=epochs_redone(events),
        saved=saved_work(job, events),
    )


def _sum(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


# --- which machines, from when to when --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    machine: Machine
    attempt: int
    began_at: datetime
    ended_at: datetime


def _stage_spans(stages: Iterable[StageTiming]) -> list[_Span]:
    return [
        _Span(work.machine, timing.attempt, work.began_at, work.ended_at)
        for timing in stages
        for work in timing.machines
    ]


def _trainer_spans(
    job: TrainingJob, trainers: Iterable[FoundTrainer], recoveries: Iterable[JobEvent], now: datetime
) -> list[_Span]:
    """Each trainer worked until it was found lost, the next one began, its stage ended, or the job did."""
    ordered = sorted(trainers, key=lambda found: found.record.began_at)
    lost = [lost_at for each in recoveries if (lost_at := _lost_at(each)) is not None]
    ends = {timing.stage: timing.finished_at for timing in job.stages if timing.finished_at is not None}
    spans: list[_Span] = []
    for place, found in enumerate(ordered):
        began_at = found.record.began_at
        following = [each.record.began_at for each in ordered[place + 1 : place + 2]]
        candidates = [*following, *lost, job.finished_at or now, ends.get(found.record.stage)]
        ended_at = min(at for at in candidates if at is not None and at >= began_at)
        spans.append(_Span(found.record.machine, found.attempt, began_at, ended_at))
    return spans


def _lost_at(event: JobEvent) -> datetime | None:
    try:
        return _RECOVERY.validate_python(event.data).lost_at
    except ValidationError:  # of a newer release
        return None


def _joined(spans: Iterable[_Span]) -> list[_Span]:
    """One for each machine and attempt, from its first to its last work."""
    of_each: dict[tuple[int, str], list[_Span]] = defaultdict(list)
    for span in spans:
        of_each[span.attempt, span.machine.node_id].append(span)
    joined = [
        _Span(
            own[0].machine,
            own[0].attempt,
            min(span.began_at for span in own),
            max(span.ended_at for span in own),
        )
        for own in of_each.values()
    ]
    return sorted(joined, key=lambda span: (span.began_at, span.machine.node_id))


def _uncovered(job: TrainingJob, trained: Collection[Stage]) -> list[str]:
    """Work of which nobody told where it was done. Trainers have told of the stages `trained`."""
    reasons: list[str] = []
    for timing in job.stages:
        if timing.finished_at is None and timing.stage not in trained:
            state = "has not ended yet" if timing.attempt == job.attempt and not job.state.is_terminal else "broke off"
            reasons.append(f"{timing.stage} of attempt {timing.attempt} {state}: who worked on it is told at its end")
        elif timing.finished_at is not None and timing.compute_s is None:
            reasons.append(f"{timing.stage} of attempt {timing.attempt} is of a release that did not tell")
    if job.spec.resources.max_workers > 1:
        reasons.append("trainers that only helped with shards (max_workers) are not told of")
    return reasons


# --- what that costs --------------------------------------------------------------------------------------------------


def _cost_of(span: _Span, prices: PriceList) -> MachineCost:
    hours = (span.ended_at - span.began_at).total_seconds() / _SECONDS_PER_HOUR
    spot, on_demand, unknown = _prices_of(span.machine, prices)
    price = {SPOT: spot, ON_DEMAND: on_demand}.get(span.machine.market or "")
    if span.machine.instance_type == LOCAL:
        price = on_demand
    elif unknown is None and price is None:
        unknown = _no_price(span.machine)
    return MachineCost(
        machine=span.machine,
        attempt=span.attempt,
        began_at=span.began_at,
        ended_at=span.ended_at,
        hours=hours,
        cost=None if price is None else hours * price,
        on_demand_cost=None if on_demand is None else hours * on_demand,
        unknown=unknown,
    )


def _prices_of(machine: Machine, prices: PriceList) -> tuple[float | None, float | None, str | None]:
    """For an hour: spot, on demand; and why they are not known."""
    if machine.instance_type is None:
        return None, None, f"node {machine.node_id[:12]} does not say which type of machine it is"
    if machine.instance_type == LOCAL:
        return 0.0, 0.0, None
    found = prices.find(machine.instance_type)
    if found is None:
        return None, None, f"the price list has no {machine.instance_type}"
    return found.spot, found.on_demand, None


def _no_price(machine: Machine) -> str:
    if machine.market is None:
        return f"node {machine.node_id[:12]} does not say whether it is spot or on demand"
    return f"the price list has no {machine.market} price of {machine.instance_type}"


# --- what was done twice, and what not at all -------------------------------------------------------------------------


def epochs_redone(events: Iterable[JobEvent]) -> int:
    """Epochs between the furthest that was reported and the checkpoint that training went on from, each time."""
    redone, reached = 0, dict.fromkeys(_TRAINS, 0)
    stage = Stage.FIT
    for event in events:
        try:
            match event.type:
                case JobEventType.STAGE:
                    begun = StageTiming.model_validate(event.data).stage
                    stage = begun if begun in _TRAINS else stage
                case JobEventType.EPOCH:
                    reached[stage] = max(reached[stage], _EPOCH.validate_python(event.data).epoch)
                case JobEventType.RECOVERY:
                    epoch = _RECOVERY.validate_python(event.data).epoch
                    redone += max(0, reached[stage] - epoch)
                    reached[stage] = min(reached[stage], epoch)
                case _:
                    pass
        except ValidationError:  # of a newer release
            continue
    return redone


def saved_work(job: TrainingJob, events: Iterable[JobEvent]) -> SavedWork:
    """By the progress that preflight and the feature pass told: what each attempt began with, and what it did."""
    first, computed = _first_progress(events)
    files = first[Stage.PREFLIGHT].total if Stage.PREFLIGHT in first else None
    known = first[Stage.PREFLIGHT].done if Stage.PREFLIGHT in first else None
    missing = first[Stage.FEATURES].total if Stage.FEATURES in first else None
    one_trunk = not job.spec.train.startswith("top_blocks:")
    cached = max(0, files - missing) if one_trunk and files is not None and missing is not None else None
    busy_s = _busy_s(job.stages)
    read = None if files is None or known is None else files - known
    spared_s = [
        _spared_s(known, read, busy_s.get(Stage.PREFLIGHT, 0.0)),
        _spared_s(cached, computed, busy_s.get(Stage.FEATURES, 0.0)),
    ]
    return SavedWork(
        files=files,
        files_known=known,
        images_computed=computed,
        images_cached=cached,
        core_s_saved=_sum(spared_s),
    )


def _spared_s(count: int | None, done: int | None, busy_s: float) -> float | None:
    """What `count` would have taken, where `done` others took `busy_s`; None where that cannot be told."""
    if count == 0:
        return 0.0
    return count * busy_s / done if count and done and busy_s else None


def _first_progress(events: Iterable[JobEvent]) -> tuple[dict[Stage, Progress], int | None]:
    """What the job's first attempt at each stage began with, and the images that all ran through trunks."""
    first: dict[Stage, Progress] = {}
    last: dict[int, int] = {}
    for event in events:
        if event.type is not JobEventType.PROGRESS:
            continue
        try:
            progress = _PROGRESS.validate_python(event.data)
        except ValidationError:  # of a newer release
            continue
        first.setdefault(progress.stage, progress)
        if progress.stage is Stage.FEATURES:
            last[event.attempt] = progress.done
    return first, sum(last.values()) if last else None


def _busy_s(stages: Iterable[StageTiming]) -> Mapping[Stage, float]:
    busy_s: dict[Stage, float] = defaultdict(float)
    for timing in stages:
        busy_s[timing.stage] += sum(work.busy_s for work in timing.machines)
    return busy_s
