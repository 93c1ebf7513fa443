"""A gateway process on a cluster, for tests that strike what it drives."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.servers.gateway_process import gateways
from tests.servers.ray_nodes import RayNodes, Role

ENDS_WITHIN_S = 240
QUICK = {"backbone": "rekindle_tiny"}
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
                command = " ".join(process.cmdline()) + " "
                if job_id in command and f"--attempt {attempt} " in command:
                    return process
        return None

    def submitted(self, job_id: str) -> list[str]:
        """All attempts of the job that Ray was ever given."""
        listed = httpx2.get(f"{self.cluster.dashboard_url}/api/jobs/", timeout=60).raise_for_status().json()
        return [each["submission_id"] for each in listed if job_id in (each["submission_id"] or "")]


@contextmanager
def gateway_on(cluster: RayNodes, folder: Path, **settings: str) -> Iterator[Gateway]:
    """It runs until the block ends; its bucket and its database are in the folder."""
    database_url = f"sqlite+aiosqlite:///{folder / 'rekindle.db'}"
    with (
        gateways(folder, database_url, cluster.dashboard_url, **settings) as (process,),
        httpx2.Client(base_url=process.url, timeout=60, trust_env=False) as client,
    ):
        yield Gateway(client, cluster, (folder / "bucket").as_uri())
