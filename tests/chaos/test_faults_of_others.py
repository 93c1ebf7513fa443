"""I7: what machines do is not held against the job, and an unreachable cluster is no reason to start anything twice."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from services.contracts.ids import JobId, submission_id
from tests.chaos.fits import LONG, running_trainer
from tests.cluster.attempts import wait_until
from tests.servers.gateway_process import gateways
from tests.servers.ray_nodes import RayNodes, Role

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ENDS_WITHIN_S = 240
QUICK = {"backbone": "rekindle_tiny"}
DRIVER_KILLS = 3
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway process, its client, and the cluster that it starts attempts on."""

    client: httpx2.Client
    cluster: RayNodes
    bucket_uri: str

    def accept(self, images: Path, model_name: str, **spec: Any) -> str:
        source = {"type": "prefix", "uri": images.as_uri()}
        dataset = self.client.post("/v1/datasets", json={"name": model_name, "source": source}).raise_for_status()
        body = {"dataset_id": dataset.json()["id"], "model_name": model_name, **QUICK, **spec}
        return self.client.post("/v1/training-jobs", json=body).raise_for_status().json()["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.client.get(f"/v1/training-jobs/{job_id}").raise_for_status().json()

    def wait(self, job_id: str, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The job, once that is so."""
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        while not true(job := self.job(job_id)):
            assert time.monotonic() < deadline_s, job
            assert job["state"] not in ENDED, job
            time.sleep(0.1)
        return job

    def end(self, job_id: str) -> dict[str, Any]:
        return self.wait(job_id, lambda job: job["state"] in ENDED)

    def log(self, job_id: str) -> str:
        """Of the newest attempt."""
        return self.client.get(f"/v1/training-jobs/{job_id}/logs").raise_for_status().text

    def driver(self, job_id: str, attempt: int) -> psutil.Process | None:
        """The process of the attempt, where it runs."""
        for process in self.cluster.processes(Role.JOB_DRIVER):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline()).strip()
                if job_id in command and command.endswith(f"--attempt {attempt}"):
                    return process
        return None

    def submitted(self, job_id: str) -> list[str]:
        """All attempts of the job that Ray was ever given."""
        listed = httpx2.get(f"{self.cluster.dashboard_url}/api/jobs/", timeout=60).raise_for_status().json()
        return [each["submission_id"] for each in listed if job_id in (each["submission_id"] or "")]


@pytest.fixture(scope="module")
def gateway(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    database_url = f"sqlite+aiosqlite:///{folder / 'rekindle.db'}"
    with (
        gateways(folder, database_url, cluster.dashboard_url) as (process,),
        httpx2.Client(base_url=process.url, timeout=60, trust_env=False) as client,
    ):
        yield Gateway(client, cluster, (folder / "bucket").as_uri())


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
