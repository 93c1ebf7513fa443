"""I7: what machines do is not held against the job, and an unreachable cluster is no reason to start anything twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.contracts.ids import JobId, submission_id
from tests.chaos.fits import LONG, running_trainer
from tests.chaos.gateway import Gateway, gateway_on
from tests.cluster.attempts import wait_until
from tests.servers.ray_nodes import RayNodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

DRIVER_KILLS = 3


@pytest.fixture(scope="module")
def gateway(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_on(cluster, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def test_lost_drivers_and_machines_use_up_no_attempt(gateway: Gateway, images: Path) -> None:
    job_id = gateway.accept(images, "blameless", **LONG, max_attempts=1)
    for attempt in range(1, DRIVER_KILLS + 1):
        wait_until(lambda number=attempt: gateway.driver(job_id, number))
        gateway.wait(job_id, lambda job: job["state"] in ("preparing", "training"))
        driver = gateway.driver(job_id, attempt)
        assert driver is not None
        driver.kill()
    gateway.wait(job_id, lambda job: job["state"] == "training" and job["metrics"])
    trainer = running_trainer(gateway.cluster, lambda: gateway.log(job_id))
    gateway.cluster.kill_node(gateway.cluster.node_of(trainer.pid))
    gateway.cluster.add_node()
    done = gateway.end(job_id)
    assert done["state"] == "succeeded", done
    assert done["attempt"] == DRIVER_KILLS + 1
    assert done["result"]["version"] == 1


def test_images_that_cannot_be_read_fail_the_job_at_its_first_attempt(
    gateway: Gateway, images: Path, tmp_path: Path
) -> None:
    for label in ("class-000", "class-001"):
        shutil.copytree(images / "train" / label, tmp_path / label)
    for image in tmp_path.glob("*/0*.jpg"):
        image.write_bytes(image.read_bytes()[:100])
    done = gateway.end(gateway.accept(tmp_path, "unreadable", max_attempts=3))
    assert (done["state"], done["attempt"]) == ("failed", 1)
    assert done["failure"]["failure_class"] == "user"
    assert done["failure"]["code"] == "too_many_quarantined"


def test_while_the_cluster_does_not_answer_no_second_attempt_is_started(
    gateway: Gateway, images: Path, tmp_path: Path
) -> None:
    for label in ("class-000", "class-001"):
        shutil.copytree(images / "train" / label, tmp_path / label)
    job_id = gateway.accept(tmp_path, "unreachable", max_attempts=1)
    wait_until(lambda: gateway.driver(job_id, 1))
    head = gateway.cluster.head
    assert head is not None
    gateway.cluster.freeze_node(head)
    gateway.wait(job_id, lambda job: job["reason"].startswith("Cannot reach the Ray cluster"))
    gateway.cluster.wake_node(head)
    done = gateway.end(job_id)
    assert (done["state"], done["attempt"]) == ("succeeded", 1), done
    assert gateway.submitted(job_id) == [submission_id(JobId(job_id), 1)]
