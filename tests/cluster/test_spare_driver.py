"""A driver that waits for its attempt, on a real Ray cluster."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.contracts import names
from services.contracts.ids import JobId, new_spare_id
from services.contracts.spare import SpareDriver
from services.training.reconciler import spare
from tests.cluster.attempts import Attempts, kill, wait_until
from tests.servers.ray_local import LocalRay

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAINER_IDLE_S = 4.0


@contextlib.contextmanager
def waiting(attempts: Attempts, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A spare driver that is ready."""
    spare_id = new_spare_id()
    process = attempts.start_spare(spare_id, environment)
    try:
        wait_until(lambda: newest(attempts).ready)
        yield spare_id, process
    finally:
        kill(process)


def newest(attempts: Attempts) -> SpareDriver:
    return SpareDriver.model_validate_json(attempts.store.get(names.spare_driver()))


def workers(ray: LocalRay, title: str) -> set[int]:
    """The process ids of the cluster's workers with such a title."""
    found: set[int] = set()
    for process in ray.processes():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            command = " ".join(process.cmdline())
            if command.startswith("ray::") and title in command:
                found.add(process.pid)
    return found


def test_it_runs_what_it_is_given_and_the_bits_are_the_same(
    attempts: Attempts, drawings: Path, undisturbed: JobId, ray_local: LocalRay
) -> None:
    with waiting(attempts) as (spare_id, process):
        assert len(workers(ray_local, "IDLE")) >= (os.cpu_count() or 1)
        assert workers(ray_local, "Trainer")
        job = attempts.accept(drawings, "drawings", seed=3)
        attempts.fence(job, 1)
        assert spare.give(attempts.store, spare_id, job, 1)
        wait_until(lambda: job in " ".join(psutil.Process(process.pid).cmdline()))
        assert process.wait(240) == 0
    assert attempts.model(job).tail_sha256 == attempts.model(undisturbed).tail_sha256
    assert spare.submission_of(attempts.store, job, 1) == spare_id


def test_it_is_given_one_attempt_only(attempts: Attempts, drawings: Path) -> None:
    job, other = (attempts.accept(drawings, f"given-{number}", seed=3) for number in range(2))
    attempts.fence(job, 1)
    with waiting(attempts) as (spare_id, process):
        assert spare.give(attempts.store, spare_id, job, 1)
        assert spare.give(attempts.store, spare_id, job, 1)
        assert not spare.give(attempts.store, spare_id, other, 1)
        assert not spare.give(attempts.store, spare_id, job, 2)
        assert process.wait(240) == 0
    assert attempts.outcome(other) is None


def test_it_ends_where_another_is_the_newest(attempts: Attempts) -> None:
    with waiting(attempts) as (spare_id, process):
        attempts.store.put(names.spare_driver(), SpareDriver(submission_id=new_spare_id()).model_dump_json().encode())
        assert process.wait(30) == 0
        assert not spare.give(attempts.store, spare_id, JobId("job_1"), 1)


def test_a_trainer_waits_as_long_as_it_does_and_no_longer(attempts: Attempts, ray_local: LocalRay) -> None:
    for left in workers(ray_local, "Trainer"):
        psutil.Process(left).kill()
    wait_until(lambda: not workers(ray_local, "Trainer"))
    with waiting(attempts, REKINDLE_TRAINER_IDLE_S=str(TRAINER_IDLE_S)):
        (trainer,) = workers(ray_local, "Trainer")
        until_s = time.monotonic() + 3 * TRAINER_IDLE_S
        wait_until(lambda: time.monotonic() > until_s or workers(ray_local, "Trainer") != {trainer})
        assert workers(ray_local, "Trainer") == {trainer}
    wait_until(lambda: not workers(ray_local, "Trainer"), 60)
