"""I3 and I4: whatever dies or goes while a job is training, its weights are those of an undisturbed run, and no more is
done again than what came after the newest checkpoint."""

import contextlib
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from services.contracts.base import utc_now
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, ProgressRecord
from tests.chaos.fits import (
    CHECKPOINT_INTERVAL_S,
    LONG,
    epoch_records,
    epochs,
    helper_counts,
    next_recovery,
    recoveries,
    running_trainer,
    saved,
)
from tests.chaos.runner.report import CHECKPOINT_ON_ITS_WAY_S
from tests.cluster.attempts import Attempts, kill, wait_until
from tests.servers.ray_environment import ROOT
from tests.servers.ray_nodes import Node, RayNodes, Role

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

KILLS = 3
FROZEN_S = 0.1
"""Until a write that was under way has arrived."""


def announce(cluster: RayNodes, node: Node) -> subprocess.Popen[bytes]:
    """A process that drains the node and waits until it is empty, for 60 s at most."""
    options = [f"--address={cluster.address}", f"--node-id={node.node_id}", "--deadline-s=60"]
    return subprocess.Popen([sys.executable, "-m", "ray_cluster.spot.drain", *options], env=cluster.env, cwd=ROOT)


def kill_between_checkpoints(
    cluster: RayNodes, attempts: Attempts, job: JobId, since: datetime
) -> list[ProgressRecord]:
    """Kills the trainer at a moment when it has reported an epoch that no checkpoint has; what it has since then."""
    trainer = running_trainer(cluster, lambda: attempts.log(job))
    while True:
        trainer.suspend()
        time.sleep(FROZEN_S)
        done = [each for each in epoch_records(attempts, job) if each.at >= since]
        if done and EpochMetrics.model_validate(done[-1].data).epoch > saved(attempts, job)[-1].epoch:
            trainer.kill()
            return done
        trainer.resume()
        time.sleep(CHECKPOINT_INTERVAL_S / 3)


def test_killed_trainers_are_replaced_by_standbys(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    """Each dies between two checkpoints, and the next goes on from exactly the newest."""
    job = attempts.accept(images, "trainer-killed", **LONG)
    driver = attempts.start(job)
    wait_until(lambda: saved(attempts, job) and len(cluster.processes(Role.TRAINER)) > 1)
    began_at = saved(attempts, job)[0].created_at - timedelta(minutes=1)
    for number in range(KILLS):
        done = kill_between_checkpoints(cluster, attempts, job, began_at)
        killed_at, newest = utc_now(), saved(attempts, job)[-1]
        recovery = next_recovery(attempts, job, driver, after=number)
        assert 0 < recovery.epoch == newest.epoch
        assert EpochMetrics.model_validate(done[-1].data).epoch > recovery.epoch, "nothing was lost: a weak test"
        # Nothing that was done before the newest checkpoint was due is done again.
        due = killed_at - timedelta(seconds=CHECKPOINT_INTERVAL_S + CHECKPOINT_ON_ITS_WAY_S)
        assert all(EpochMetrics.model_validate(each.data).epoch <= recovery.epoch for each in done if each.at < due)
        began_at = recovery.resumed_at
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed
    assert len(recoveries(attempts, job)) == KILLS


def test_a_trainer_lost_before_its_first_checkpoint_is_told_of_as_well(
    cluster: RayNodes, attempts: Attempts, images: Path
) -> None:
    spec = {**LONG, "fine_tuning": {**LONG["fine_tuning"], "epochs": 100}, "checkpoint_interval_s": 600}
    job = attempts.accept(images, "killed-early", **spec)
    driver = attempts.start(job)
    trainer = running_trainer(cluster, lambda: attempts.log(job))
    wait_until(lambda: epochs(attempts, job) or driver.poll() is not None)
    trainer.kill()
    assert not saved(attempts, job)
    recovery = next_recovery(attempts, job, driver)
    assert recovery.epoch == 0
    assert recovery.lost_at is not None
    assert driver.wait(240) == 0, attempts.log(job)
    assert epochs(attempts, job)[-1] == 100


def test_a_fit_that_turns_out_long_goes_on_under_ray_train(cluster: RayNodes, attempts: Attempts, images: Path) -> None:
    """The trainer stands still while Ray Train starts, so that its fit is not over by then."""
    epoch_count = 100
    job = attempts.accept(images, "long", **{**LONG, "fine_tuning": {**LONG["fine_tuning"], "epochs": epoch_count}})
    driver = attempts.start(job, short_fit_s=1)
    wait_until(lambda: "starting Ray Train" in attempts.log(job) or driver.poll() is not None)
    trainer = running_trainer(cluster, lambda: attempts.log(job))
    trainer.suspend()
    wait_until(lambda: cluster.processes(Role.TRAIN_WORKER) or driver.poll() is not None)
    trainer.resume()
    assert driver.wait(240) == 0, attempts.log(job)
    assert "the fit runs in" in attempts.log(job), "Ray Train's worker did not find it"
    assert not recoveries(attempts, job)
    done = epochs(attempts, job)
    assert done == sorted(set(done))
    assert done[-1] == epoch_count


def test_a_fit_may_be_over_before_ray_train_has_started(attempts: Attempts, images: Path) -> None:
    epoch_count = 30
    job = attempts.accept(images, "long", **{**LONG, "fine_tuning": {**LONG["fine_tuning"], "epochs": epoch_count}})
    driver = attempts.start(job, short_fit_s=0.1)
    wait_until(lambda: attempts.outcome(job) is not None or driver.poll() is not None)
    assert driver.wait(240) == 0, attempts.log(job)
    assert "starting Ray Train" in attempts.log(job)
    assert not recoveries(attempts, job)
    assert epochs(attempts, job)[-1] == epoch_count


def test_training_goes_on_while_all_that_asks_for_it_is_replaced(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    """Ray Train's worker and controller die, then the driver, and with it the attempt."""
    job = attempts.accept(images, "clients-killed", **LONG)
    first = attempts.start(job, short_fit_s=0)
    wait_until(lambda: epochs(attempts, job) or first.poll() is not None)
    assert first.poll() is None, attempts.log(job)
    for role in (Role.TRAIN_WORKER, Role.TRAIN_CONTROLLER):
        for process in cluster.processes(role):
            process.kill()
    reached = max(epochs(attempts, job))
    kill(first)
    second = attempts.start(job, 2)
    assert second.wait(240) == 0, attempts.log(job, 2)
    assert attempts.model(job, 2).tail_sha256 == undisturbed
    done = epochs(attempts, job) + epochs(attempts, job, 2)
    assert not recoveries(attempts, job) + recoveries(attempts, job, 2), "it was begun anew"
    assert done == sorted(set(done)), "epochs were done twice"
    assert max(done) > reached


def test_helpers_that_come_and_die_change_nothing(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "helped", **LONG, resources={"min_workers": 1, "max_workers": 2})
    driver = attempts.start(job)
    wait_until(lambda: helper_counts(attempts.log(job)) or driver.poll() is not None)
    assert epochs(attempts, job), "it began with a helper, and did not grow"
    assert driver.poll() is None, attempts.log(job)
    leader = running_trainer(cluster, lambda: attempts.log(job))
    killed = {each.pid for each in cluster.processes(Role.TRAINER) if each.pid != leader.pid}
    for pid in killed:
        psutil.Process(pid).kill()
    assert driver.wait(240) == 0, attempts.log(job)
    assert 0 in helper_counts(attempts.log(job)), "nobody noticed that the helpers are gone"
    assert attempts.model(job).tail_sha256 == undisturbed


def test_a_node_that_got_notice_is_left_without_a_step_done_twice(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "notice", **LONG)
    driver = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    node = cluster.node_of(running_trainer(cluster, lambda: attempts.log(job)).pid)
    drain = announce(cluster, node)
    recovery = next_recovery(attempts, job, driver)
    assert drain.wait(60) == 0, "the node was not empty before its deadline"
    cluster.kill_node(node)
    cluster.add_node()
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed
    assert len(recoveries(attempts, job)) == 1
    done = epochs(attempts, job)
    assert done == sorted(set(done)), "epochs were done twice"
    assert recovery.epoch > 0


def test_a_cancelled_job_is_not_trained_on(cluster: RayNodes, attempts: Attempts, images: Path) -> None:
    job = attempts.accept(images, "cancelled", **LONG)
    driver = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    trainer = running_trainer(cluster, lambda: attempts.log(job))
    kill(driver)
    attempts.end(job)
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_until(lambda: trainer.cpu_percent(0.5) < 20, 60)
    reached = epochs(attempts, job)
    time.sleep(1)
    assert epochs(attempts, job) == reached
