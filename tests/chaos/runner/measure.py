"""What a strike cost a job, out of the job's own events: pure functions, no clock.

A step is an epoch: one iteration of L-BFGS, or fine-tuning's pass over the images. The events say when (by the clock of
this machine, the only one here) and in which epoch training was, but not every epoch has an event; what is read off
between two of them is interpolated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from services.contracts.jobs import EpochMetrics, JobEvent, JobEventType, Recovery, Stage, StageTiming
from tests.chaos.runner.schedule import TRAINING


@dataclass(frozen=True, slots=True)
class Window:
    """One strike as one job may have felt it."""

    began_at: datetime
    """When the fault came."""
    ended_at: datetime
    """When an outage or a freeze was over; equal to `began_at` for a kill."""
    until: datetime | None
    """When the next strike came, to which everything after it is put down; None for the last."""
    told_at: datetime | None = None
    """When Ray told that a node was lost, where that is known."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a strike did to a job that trained."""

    recovery_s: float | None
    """From the fault to the first training step after it; from its end for an outage. None: there was none before the
    next strike, or the stage had done its last."""
    restarted: bool
    """Whether training went on in another process. Otherwise it was not interrupted."""
    detected_s: float | None
    """Of `recovery_s`: until its supervisor knew that its trainer was lost, or Ray told that the node was, where the
    supervisor was lost as well. None where neither is known."""
    trainer_s: float | None
    """Of `recovery_s`: from then, or else from the fault, until a process began to load what the fit needs."""
    first_step_s: float | None
    """Of `recovery_s`: the rest, which is loading, resuming from the checkpoint, and one step."""
    steps_redone: int
    redone_s: float
    """How long the steps redone had taken the first time."""


NO_EFFECT = Effect(None, False, None, None, None, 0, 0.0)


def trained_at(events: Sequence[JobEvent], at: datetime) -> Stage | None:
    """The stage in which the job trained at that moment, in whichever attempt; None where it did not."""
    for stage in reversed(list(dict.fromkeys(TRAINING))):
        span = _span(events, stage)
        if span is not None and span[0] <= at and (span[1] is None or at < span[1]):
            return stage
    return None


def effect(events: Sequence[JobEvent], window: Window) -> Effect:
    """The strike's effect on the job's training; `NO_EFFECT` where it did not train or had not done a step."""
    stage = trained_at(events, window.began_at)
    if stage is None or not _epochs_until(events, stage, window.began_at):
        return NO_EFFECT
    after = [event for event in events if event.at > window.began_at and not _too_late(event.at, window)]
    for event in after:
        if event.type is JobEventType.RECOVERY:
            recovery = Recovery.model_validate(event.data)
            if recovery.resumed_at > window.began_at:
                return _restarted(events, trained_at(events, recovery.resumed_at) or stage, window, recovery)
    steps = [event.at for event in after if event.type is JobEventType.EPOCH and event.at > window.ended_at]
    recovery_s = (min(steps) - window.ended_at).total_seconds() if steps else None
    return Effect(recovery_s, False, None, None, None, 0, 0.0)


def counted(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """Of one strike's effects on all jobs, those that count: where training went on elsewhere, else the worst one.

    A strike hits some job, and which one cannot be told from outside; the others would water the numbers down.
    """
    felt = [each for each in effects if each != NO_EFFECT]
    restarted = tuple(each for each in felt if each.restarted)
    return restarted or tuple(sorted(felt, key=lambda each: each.recovery_s or 0.0)[-1:])


def percentile(values: Sequence[float], share: float) -> float | None:
    """By the nearest rank: the smallest value with at least `share` of all at or below it. None of no values."""
    if not values:
        return None
    rank = max(1, math.ceil(round(share * len(values), 6)))
    return sorted(values)[rank - 1]


def _restarted(events: Sequence[JobEvent], stage: Stage, window: Window, recovery: Recovery) -> Effect:
    done = _epochs_until(events, stage, recovery.resumed_at)
    last_at, last = max(done, key=lambda each: each[1], default=(window.began_at, 0))
    # After a notice, or without those who asked for the fit, training goes on for a while before it moves.
    began = max(window.began_at, min(window.ended_at, recovery.resumed_at), last_at)
    redone = max(0, last - recovery.epoch)
    reached_at = _reached_at(done, recovery.epoch)
    known_at = recovery.lost_at
    if known_at is None and window.told_at is not None and window.told_at <= recovery.resumed_at:
        known_at = window.told_at
    return Effect(
        recovery_s=_seconds(recovery.first_step_at - began),
        restarted=True,
        detected_s=None if known_at is None else _seconds(known_at - began),
        trainer_s=_seconds(recovery.resumed_at - (known_at or began)),
        first_step_s=_seconds(recovery.first_step_at - recovery.resumed_at),
        steps_redone=redone,
        redone_s=_seconds(last_at - reached_at) if redone and reached_at is not None else 0.0,
    )


def _span(events: Sequence[JobEvent], stage: Stage) -> tuple[datetime, datetime | None] | None:
    """When the stage began, in the first attempt that did, and ended; None where it did not begin."""
    told = [(event.at, StageTiming.model_validate(event.data)) for event in events if event.type is JobEventType.STAGE]
    began = [at for at, timing in told if timing.stage is stage]
    ended = [at for at, timing in told if timing.stage is stage and timing.finished_at is not None]
    return (min(began), min(ended, default=None)) if began else None


def _epochs_until(events: Sequence[JobEvent], stage: Stage, at: datetime) -> list[tuple[datetime, int]]:
    """When which of the stage's epochs was done, in all attempts."""
    span = _span(events, stage)
    if span is None:
        return []
    until = at if span[1] is None else min(at, span[1])
    return [
        (event.at, EpochMetrics.model_validate(event.data).epoch)
        for event in events
        if event.type is JobEventType.EPOCH and span[0] <= event.at <= until
    ]


def _reached_at(done: Sequence[tuple[datetime, int]], epoch: int) -> datetime | None:
    """When the epoch was over, the last time that it was: on the straight line between the events around it."""
    for (before_at, before), (after_at, after) in reversed(list(pairwise(done))):
        if before <= epoch <= after and after > before:
            return before_at + (after_at - before_at) * ((epoch - before) / (after - before))
    return done[0][0] if done and epoch <= done[0][1] else None


def _too_late(at: datetime, window: Window) -> bool:
    return window.until is not None and at > window.until


def _seconds(span: timedelta) -> float:
    return max(0.0, span.total_seconds())
