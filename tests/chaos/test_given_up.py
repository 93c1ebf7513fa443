"""I6: what was given up while it stood still does no harm when it wakes: it saves nothing and publishes nothing."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from ray_cluster.train import finished
from services.contracts.ids import JobId
from tests.chaos.fits import LONG, epochs, next_recovery, running_trainer, saved, versions
from tests.cluster.attempts import Attempts, wait_until
from tests.servers.ray_nodes import RayNodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SHORT = {**LONG["fine_tuning"], "epochs": 60}
IDLE_PERCENT = 10
"""Of a core: a trainer that uses less has stopped its fit."""
FENCED_WITHIN_S = 30
"""A woken trainer tries to save within a checkpoint interval, and stops."""


def saved_until_it_stops(attempts: Attempts, job: JobId, trainer: psutil.Process) -> set[tuple[int, int]]:
    """Terms and steps of all checkpoints that are seen until the trainer no longer computes."""
    seen: set[tuple[int, int]] = set()
    deadline_s = time.monotonic() + FENCED_WITHIN_S
    trainer.cpu_percent()
    looked_at_s = time.monotonic()
    while time.monotonic() < deadline_s:
        seen |= {(each.term, each.step) for each in saved(attempts, job)}
        if time.monotonic() - looked_at_s > 1:
            looked_at_s = time.monotonic()
            if trainer.cpu_percent() < IDLE_PERCENT:
                return seen
    pytest.fail(f"the trainer that was given up still computes; saved meanwhile: {sorted(seen)}")


def test_a_trainer_that_wakes_after_another_took_over_saves_nothing(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "woken-trainer", **LONG)
    driver = attempts.start(job)
    wait_until(lambda: saved(attempts, job))
    trainer = running_trainer(cluster, lambda: attempts.log(job))
    node = cluster.node_of(trainer.pid)
    cluster.freeze_node(node)
    before = saved(attempts, job)
    next_recovery(attempts, job, driver)
    used_s = sum(trainer.cpu_times()[:2])
    trainer.resume()  # and not its raylet, which would end it
    seen = saved_until_it_stops(attempts, job, trainer)
    assert sum(trainer.cpu_times()[:2]) > used_s, "it has not tried"
    term = before[-1].term
    assert {each for each in seen if each[0] == term} <= {(term, each.step) for each in before}
    cluster.kill_node(node)
    cluster.add_node()
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed
    assert versions(attempts, "woken-trainer") == ["v1"]


def test_a_driver_that_wakes_after_its_attempt_was_given_up_publishes_nothing(
    cluster: RayNodes, attempts: Attempts, images: Path
) -> None:
    job = attempts.accept(images, "woken-driver", **{**LONG, "fine_tuning": SHORT})
    first = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    first.send_signal(signal.SIGSTOP)
    wait_until(lambda: finished.find_network(attempts.store, job))
    attempts.fence(job, 2)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(120) == 1
    assert attempts.outcome(job, 1) is None
    assert versions(attempts, "woken-driver") == []
    assert attempts.run(job, 2) == 0, attempts.log(job, 2)
    found = finished.find_network(attempts.store, job)
    assert found is not None
    assert attempts.model(job, 2).tail_sha256 == found[1].sha256()
    assert versions(attempts, "woken-driver") == ["v1"]
