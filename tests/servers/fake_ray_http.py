"""The played Ray cluster as a process of its own, so that several gateway processes share it.

It speaks the part of the Jobs API that gateways use, and remembers every submission it accepted. Each attempt plays
itself: it runs, and after `seconds` publishes the next version of its job's model to the bucket, unless the bucket's
fence has given it up. `python -m tests.servers.fake_ray_http PORT_FILE SECONDS`.
"""

import asyncio
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from ray_cluster.train.fence import check_fence
from ray_cluster.train.publish import claim_version
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import Fenced
from services.contracts.ids import JobId
from services.contracts.jobs import AttemptOutcome, JobRecord, PublishedModel
from services.runtime.objects import open_store
from tests.servers.training import make_manifest, put_manifest

START_TIMEOUT_S = 60


@dataclass
class PlayedCluster:
    """Jobs by submission id."""

    seconds: float
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def submit(self, submission_id: str, entrypoint: str) -> bool:
        """False: it is there already."""
        if submission_id in self.jobs:
            return False
        self.accepted.append(submission_id)
        self.jobs[submission_id] = {"status": "PENDING", "message": "", "error_type": None}
        words = shlex.split(entrypoint)
        options = dict(zip(words[3::2], words[4::2], strict=True))
        task = asyncio.create_task(self._play(submission_id, options))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return True

    async def _play(self, submission_id: str, options: dict[str, str]) -> None:
        job = self.jobs[submission_id]
        job["status"] = "RUNNING"
        await asyncio.sleep(self.seconds)
        if job["status"] != "RUNNING":
            return
        done = await asyncio.to_thread(publish, options["--bucket"], JobId(options["--job"]), int(options["--attempt"]))
        job["status"] = "SUCCEEDED" if done else "FAILED"


def publish(bucket: str, job_id: JobId, attempt: int) -> bool:
    """What an attempt leaves at its end; False for one that was given up."""
    store = open_store(bucket)
    record = JobRecord.model_validate_json(store.get(names.job_spec(job_id)))
    version = claim_version(store, record.model_name, job_id)
    try:
        check_fence(store, job_id, attempt)
    except Fenced:
        return False
    put_manifest(store, make_manifest(version, record.model_name, job_id=job_id, attempt=attempt))
    published = PublishedModel(model_name=record.model_name, version=version, accuracy=0.75, evaluated_split="test")
    outcome = AttemptOutcome(job_id=job_id, attempt=attempt, finished_at=utc_now(), published=published, failure=None)
    store.put(names.attempt_outcome(job_id, attempt), outcome.model_dump_json().encode(), if_absent=True)
    return True


def make_app(cluster: PlayedCluster) -> FastAPI:
    """Ray's dashboard, as far as it is played."""
    app = FastAPI()

    @app.post("/api/jobs/")
    async def submit(request: Request) -> JSONResponse:
        body = await request.json()
        if not cluster.submit(body["submission_id"], body["entrypoint"]):
            return JSONResponse({"error": f"job {body['submission_id']} already exists"}, 500)
        return JSONResponse({"submission_id": body["submission_id"]})

    @app.get("/api/jobs/{submission_id}", response_model=None)
    async def job(submission_id: str) -> JSONResponse | PlainTextResponse:
        found = cluster.jobs.get(submission_id)
        if found is None:
            return PlainTextResponse(f"Job {submission_id} does not exist", 404)
        return JSONResponse(found)

    @app.post("/api/jobs/{submission_id}/stop")
    async def stop(submission_id: str) -> JSONResponse:
        found = cluster.jobs.get(submission_id)
        if found is not None and found["status"] in ("PENDING", "RUNNING"):
            found["status"] = "STOPPED"
        return JSONResponse({"stopped": True})

    @app.get("/api/serve/applications/")
    async def applications() -> JSONResponse:
        return JSONResponse({"applications": {}})

    @app.put("/api/serve/applications/")
    async def deploy() -> JSONResponse:
        return JSONResponse({})

    @app.get("/played/accepted")
    async def accepted() -> JSONResponse:
        return JSONResponse(cluster.accepted)

    del submit, job, stop, applications, deploy, accepted
    return app


@dataclass(frozen=True)
class FakeRayServer:
    """A running played cluster."""

    url: str

    def accepted(self) -> list[str]:
        """Submission ids that the cluster took, in order; each counts once."""
        return httpx2.get(f"{self.url}/played/accepted", timeout=30, trust_env=False).json()


@contextmanager
def running_fake_ray(folder: Path, seconds: float) -> Iterator[FakeRayServer]:
    """Starts the process and ends it."""
    port_file = folder / "fake-ray-port"
    with (folder / "fake-ray.log").open("ab") as log:
        command = [sys.executable, "-m", "tests.servers.fake_ray_http", str(port_file), str(seconds)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not port_file.exists():
            assert process.poll() is None, (folder / "fake-ray.log").read_text()
            assert time.monotonic() < deadline, "the played cluster did not start"
            time.sleep(0.05)
        yield FakeRayServer(f"http://127.0.0.1:{port_file.read_text()}")
    finally:
        process.kill()
        process.wait()


async def _serve(port_file: Path, seconds: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # takes connections from here on
    unfinished = port_file.with_suffix(".new")
    unfinished.write_text(str(listener.getsockname()[1]))
    os.replace(unfinished, port_file)
    server = uvicorn.Server(uvicorn.Config(make_app(PlayedCluster(seconds)), log_level="warning"))
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))
