"""The chaos report's form, and which results break a promise."""

from dataclasses import replace

import pytest

from services.contracts.jobs import JobState
from tests.chaos.run import parse
from tests.chaos.runner.measure import Effect
from tests.chaos.runner.report import CHECKPOINT_ON_ITS_WAY_S, Ended, Felt, Results, as_json, broken_promises, table
from tests.chaos.runner.schedule import Manner, Target

DONE = Ended("job_1", JobState.SUCCEEDED, "a", "a")
RESTARTED = Effect(4.0, True, 1.0, 2.0, 1.0, 20, 1.9)
NOTICED = Felt(2, Target.SPOT_NOTICE, Manner.NOTICE, (replace(RESTARTED, steps_redone=1),), 0.0)
KILLED = Felt(1, Target.TRAINER, Manner.KILL, (RESTARTED,), 0.0)
TOO_MUCH = replace(RESTARTED, redone_s=2.1 + CHECKPOINT_ON_ITS_WAY_S)
GOOD = Results((KILLED, NOTICED), (DONE, replace(DONE, job_id="job_2")), 0, 2.0)


def test_the_report_has_the_promised_keys_and_numbers() -> None:
    report = as_json(GOOD)
    assert list(report) == [
        "kills",
        "jobs",
        "jobs_finished",
        "bit_identical",
        "duplicate_jobs",
        "steps_redone_max",
        "recovery_s",
        "beyond_detection_s",
        "recovery_breakdown_s",
        "by_target",
    ]
    assert (report["kills"], report["jobs"], report["jobs_finished"], report["bit_identical"]) == (2, 2, 2, 2)
    assert report["recovery_s"] == {"p50": 4.0, "p95": 4.0}
    assert report["beyond_detection_s"] == {"p50": 3.0, "p95": 3.0}
    assert report["steps_redone_max"] == 20
    assert report["by_target"]["spot_notice"]["steps_redone_max"] == 1
    assert "| trainer | 1 | 1 | 1 | 20 | 4.0 / 4.0 |" in table(report)


def test_where_nobody_could_tell_of_the_loss_all_of_it_counts() -> None:
    unseen, went_on = replace(RESTARTED, detected_s=None), replace(RESTARTED, restarted=False, recovery_s=99.0)
    report = as_json(replace(GOOD, felt=(replace(KILLED, effects=(unseen, went_on)),)))
    assert report["beyond_detection_s"] == {"p50": 4.0, "p95": 4.0}


def test_good_results_break_nothing() -> None:
    assert broken_promises(GOOD) == []


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (replace(GOOD, ended=(replace(DONE, state=JobState.FAILED, weights_sha256=None),)), "failed instead of"),
        (replace(GOOD, ended=(replace(DONE, weights_sha256="b"),)), "ended with b and undisturbed with a"),
        (replace(GOOD, duplicate_jobs=1), "1 jobs or versions are there twice"),
        (replace(GOOD, felt=(replace(NOTICED, effects=(replace(RESTARTED, steps_redone=2),)),)), "spite of a notice"),
        (
            replace(
                GOOD, felt=(replace(KILLED, effects=(replace(RESTARTED, redone_s=2.1 + CHECKPOINT_ON_ITS_WAY_S),)),)
            ),
            "20 steps that had taken 7.1 s",
        ),
    ],
    ids=["not finished", "other weights", "duplicate", "redone after notice", "redone too much"],
)
def test_broken_promises_are_told(results: Results, words: str) -> None:
    (line,) = broken_promises(results)
    assert words in line


def test_an_outage_allows_what_it_kept_from_being_saved() -> None:
    lost = replace(KILLED, effects=(replace(RESTARTED, redone_s=30.0),), bucket_lost_s=60.0)
    assert broken_promises(replace(GOOD, felt=(lost,))) == []


def test_a_run_that_met_no_fit_has_no_times() -> None:
    report = as_json(Results((Felt(1, Target.S3, Manner.OUTAGE, (), 5.0),), (DONE,), 0, 2.0))
    assert report["recovery_s"] == {"p50": None, "p95": None}
    assert "| s3 | 1 | 0 | 0 | 0 | - / - |" in table(report)


def test_the_command_line() -> None:
    assert parse(["--kills", "", "--seed", "", "--targets", ""]).kills == 12
    given = parse(["--kills", "3", "--seed", "7", "--targets", "s3, gateway"])
    assert (given.kills, given.seed, given.targets) == (3, 7, (Target.S3, Target.GATEWAY))
    with pytest.raises(SystemExit):
        parse(["--targets", "mainframe"])
