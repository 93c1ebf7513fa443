"""The report of a run: its numbers as JSON, as a table, and what of it breaks a promise."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.contracts.jobs import JobState
from tests.chaos.runner.measure import Effect, percentile
from tests.chaos.runner.schedule import Manner, Target

CHECKPOINT_ON_ITS_WAY_S = 5.0
"""A checkpoint counts from when it is in the bucket. One that is due is written beside the training, by an S3 server
that is one process on the same machine: what is trained meanwhile may be lost on top of the interval."""


@dataclass(frozen=True, slots=True)
class Felt:
    """One strike and what it did to the jobs that it met in their fit."""

    number: int
    target: Target
    manner: Manner
    effects: tuple[Effect, ...]
    bucket_lost_s: float
    """How long before and during the strike no checkpoint could be written, since it or the one before took the
    bucket or the process away."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One job at the end of the run."""

    job_id: str
    state: JobState
    weights_sha256: str | None
    reference_sha256: str


@dataclass(frozen=True, slots=True)
class Results:
    """All that a run found out."""

    felt: tuple[Felt, ...]
    ended: tuple[Ended, ...]
    duplicate_jobs: int
    """Jobs that nobody asked for, and versions beyond the one of each job."""
    checkpoint_interval_s: float


def as_json(results: Results) -> dict[str, Any]:
    """`report.json`. Seconds have two digits after the point; null where there was nothing to measure."""
    finished = [job for job in results.ended if job.state is JobState.SUCCEEDED]
    effects = [effect for felt in results.felt for effect in felt.effects]
    return {
        "kills": len(results.felt),
        "jobs": len(results.ended),
        "jobs_finished": len(finished),
        "bit_identical": sum(job.weights_sha256 == job.reference_sha256 for job in finished),
        "duplicate_jobs": results.duplicate_jobs,
        **_measured(effects),
        "by_target": {
            target.value: _of_target([felt for felt in results.felt if felt.target is target])
            for target in Target
            if any(felt.target is target for felt in results.felt)
        },
    }


def broken_promises(results: Results) -> list[str]:
    """What the run proves wrong, in words; empty when every promise that is no timing was kept."""
    broken: list[str] = []
    for job in results.ended:
        if job.state is not JobState.SUCCEEDED:
            broken.append(f"{job.job_id} is {job.state} instead of finished")
        elif job.weights_sha256 != job.reference_sha256:
            broken.append(f"{job.job_id} ended with {job.weights_sha256} and undisturbed with {job.reference_sha256}")
    if results.duplicate_jobs:
        broken.append(f"{results.duplicate_jobs} jobs or versions are there twice")
    for felt in results.felt:
        allowed_s = results.checkpoint_interval_s + CHECKPOINT_ON_ITS_WAY_S + felt.bucket_lost_s
        for effect in felt.effects:
            if felt.manner is Manner.NOTICE and effect.steps_redone > 1:
                broken.append(f"strike {felt.number}: {effect.steps_redone} steps were redone in spite of a notice")
            elif effect.redone_s > allowed_s:
                broken.append(
                    f"strike {felt.number} on {felt.target}: {effect.steps_redone} steps that had taken "
                    f"{effect.redone_s:.1f} s were redone, and {allowed_s:.1f} s are allowed"
                )
    return broken


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table, a line per target."""
    rows = ["| target | strikes | jobs hit | went on elsewhere | steps redone, most | recovery p50 / p95, s |"]
    rows.append("|---|---|---|---|---|---|")
    for target, row in report["by_target"].items():
        recovery = row["recovery_s"]
        rows.append(
            f"| {target} | {row['kills']} | {row['jobs_hit']} | {row['restarted']} | {row['steps_redone_max']} "
            f"| {_shown(recovery['p50'])} / {_shown(recovery['p95'])} |"
        )
    recovery, beyond = report["recovery_s"], report["beyond_detection_s"]
    parts = ", ".join(
        f"{name.replace('_', ' ')} {_shown(part['p50'])} / {_shown(part['p95'])} s"
        for name, part in report["recovery_breakdown_s"].items()
    )
    rows.append(
        f"\n{report['kills']} strikes, {report['jobs_finished']} of {report['jobs']} jobs finished, "
        f"{report['bit_identical']} bit-identical, {report['duplicate_jobs']} duplicates, "
        f"at most {report['steps_redone_max']} steps redone, recovery p50 {_shown(recovery['p50'])} s, "
        f"p95 {_shown(recovery['p95'])} s. Where training went on elsewhere, p50 / p95: "
        f"{_shown(beyond['p50'])} / {_shown(beyond['p95'])} s beyond its detection; {parts}."
    )
    return "\n".join(rows)


def _of_target(felt: Sequence[Felt]) -> dict[str, Any]:
    effects = [effect for each in felt for effect in each.effects]
    hit = {"kills": len(felt), "jobs_hit": len(effects), "restarted": sum(effect.restarted for effect in effects)}
    return {**hit, **_measured(effects)}


def _measured(effects: Sequence[Effect]) -> dict[str, Any]:
    return {
        "steps_redone_max": max((effect.steps_redone for effect in effects), default=0),
        "recovery_s": _percentiles(effect.recovery_s for effect in effects),
        "beyond_detection_s": _percentiles(_beyond_detection(effect) for effect in effects),
        "recovery_breakdown_s": {
            "detected": _percentiles(effect.detected_s for effect in effects),
            "trainer_there": _percentiles(effect.trainer_s for effect in effects),
            "first_step": _percentiles(effect.first_step_s for effect in effects),
        },
    }


def _beyond_detection(effect: Effect) -> float | None:
    """From the moment when the loss was known, or from the fault where nobody was left to know it."""
    if not effect.restarted or effect.recovery_s is None:
        return None
    return effect.recovery_s - (effect.detected_s or 0.0)


def _percentiles(values: Iterable[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"p50": _rounded(percentile(known, 0.5)), "p95": _rounded(percentile(known, 0.95))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
