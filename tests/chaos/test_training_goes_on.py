"""I3 and I4: whatever dies or goes while a job is training, its weights are those of an undisturbed run, and no more is
done again than what came after the newest checkpoint."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from services.contracts.base import utc_now
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, JobEventType, ProgressRecord, Recovery
from tests.chaos.runner.jobs import draw
from tests.cluster.attempts import Attempts, kill, wait_until
from tests.servers.ray_nodes import ROOT, Node, RayNodes, Role, ray_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CHECKPOINT_INTERVAL_S = 1
ENDLESS = {"weight_decay": 0, "augmentation": "light", "epochs": 10_000, "checkpoint_interval_s": CHECKPOINT_INTERVAL_S}
"""Without a penalty on labels that say nothing, L-BFGS goes on for hundreds of epochs."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(spots=2, env={"REKINDLE_STANDBY_AFTER_S": "0"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def attempts(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    return Attempts(cluster, tmp_path_factory.mktemp("bucket").as_uri())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), 0).images


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, images: Path) -> str:
    """The SHA-256 of an undisturbed run's weights."""
    job = attempts.accept(images, "undisturbed", **ENDLESS)
    assert attempts.run(job) == 0, attempts.log(job)
    assert not of_type(attempts, job, JobEventType.RECOVERY)
    return attempts.model(job).tail_sha256


def of_type(attempts: Attempts, job: JobId, kind: JobEventType, attempt: int = 1) -> list[ProgressRecord]:
    return [record for record in attempts.records(job, attempt) if record.type is kind]


def epochs(attempts: Attempts, job: JobId, attempt: int = 1) -> list[int]:
    return [
        EpochMetrics.model_validate(each.data).epoch for each in of_type(attempts, job, JobEventType.EPOCH, attempt)
    ]


def has_a_checkpoint(attempts: Attempts, job: JobId) -> bool:
    listed = attempts.store.list(f"jobs/{job}/checkpoints/")
    return any(info.key.endswith("/manifest.json") for info in listed)


def running_trainer(cluster: RayNodes) -> psutil.Process:
    """The trainer that computes: the one that uses the processor."""
    processes = cluster.processes(Role.TRAINER)
    for process in processes:
        process.cpu_percent()
    time.sleep(0.5)
    return max(processes, key=lambda process: process.cpu_percent())


def announce(cluster: RayNodes, node: Node) -> subprocess.Popen[bytes]:
    """A process that drains the node and waits until it is empty, for 60 s at most."""
    options = [f"--address={cluster.address}", f"--node-id={node.node_id}", "--deadline-s=60"]
    return subprocess.Popen([sys.executable, "-m", "ray_cluster.spot.drain", *options], env=cluster.env, cwd=ROOT)


def test_a_killed_trainer_is_replaced_by_a_standby(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "trainer-killed", **ENDLESS)
    driver = attempts.start(job)
    wait_until(lambda: has_a_checkpoint(attempts, job) and len(cluster.processes(Role.TRAINER)) > 1)
    running_trainer(cluster).kill()
    killed_at = utc_now()
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed
    (record,) = of_type(attempts, job, JobEventType.RECOVERY)
    recovery = Recovery.model_validate(record.data)
    assert recovery.epoch > 0
    # Nothing that was done before the newest checkpoint was due is done again.
    due = killed_at - timedelta(seconds=2 * CHECKPOINT_INTERVAL_S)
    safe = [each for each in of_type(attempts, job, JobEventType.EPOCH) if each.at < due]
    assert all(EpochMetrics.model_validate(each.data).epoch <= recovery.epoch for each in safe)


def test_training_goes_on_while_all_that_asks_for_it_is_replaced(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    """Train worker and controller, then the driver, and with it the attempt."""
    job = attempts.accept(images, "clients-killed", **ENDLESS)
    first = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    for role in (Role.TRAIN_WORKER, Role.TRAIN_CONTROLLER):
        for process in cluster.processes(role):
            process.kill()
    reached = max(epochs(attempts, job))
    kill(first)
    second = attempts.start(job, 2)
    assert second.wait(240) == 0, attempts.log(job, 2)
    assert attempts.model(job, 2).tail_sha256 == undisturbed
    done = epochs(attempts, job) + epochs(attempts, job, 2)
    assert not of_type(attempts, job, JobEventType.RECOVERY, 2), "the fit was begun anew"
    assert done == sorted(set(done)), "epochs were done twice"
    assert max(done) > reached


def test_helpers_that_come_and_die_change_nothing(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "helped", **ENDLESS, resources={"min_workers": 2, "max_workers": 3})
    driver = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    leader = running_trainer(cluster)
    helpers = [each for each in cluster.processes(Role.TRAINER) if each.pid != leader.pid]
    assert helpers
    for helper in helpers:
        helper.kill()
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed


def test_a_node_that_got_notice_is_left_without_a_step_done_twice(
    cluster: RayNodes, attempts: Attempts, images: Path, undisturbed: str
) -> None:
    job = attempts.accept(images, "notice", **ENDLESS)
    driver = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    node = cluster.node_of(running_trainer(cluster).pid)
    drain = announce(cluster, node)
    wait_until(lambda: of_type(attempts, job, JobEventType.RECOVERY) or driver.poll() is not None)
    assert drain.wait(60) == 0, "the node was not empty before its deadline"
    cluster.kill_node(node)
    cluster.add_node()
    assert driver.wait(240) == 0, attempts.log(job)
    assert attempts.model(job).tail_sha256 == undisturbed
    (record,) = of_type(attempts, job, JobEventType.RECOVERY)
    done = epochs(attempts, job)
    assert done == sorted(set(done)), "epochs were done twice"
    assert Recovery.model_validate(record.data).epoch > 0


def test_a_cancelled_job_is_not_trained_on(cluster: RayNodes, attempts: Attempts, images: Path) -> None:
    job = attempts.accept(images, "cancelled", **ENDLESS)
    driver = attempts.start(job)
    wait_until(lambda: epochs(attempts, job))
    kill(driver)
    attempts.end(job)
    with contextlib.suppress(psutil.NoSuchProcess):
        trainer = running_trainer(cluster)
        wait_until(lambda: trainer.cpu_percent(0.5) < 20, 60)
    reached = epochs(attempts, job)
    time.sleep(1)
    assert epochs(attempts, job) == reached
