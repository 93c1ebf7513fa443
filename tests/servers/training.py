"""The training gateway, started with its reconciler, on a cluster that the test plays."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.base import utc_now
from services.contracts.batch_predictions import (
    PREDICTIONS_CSV,
    PREDICTIONS_JSONL,
    QUARANTINE_CSV,
    QUARANTINE_JSONL,
    BatchResult,
    LabelCount,
)
from services.contracts.ids import JobId, TrunkId, submission_id
from services.contracts.jobs import (
    AttemptOutcome,
    Failure,
    FailureClass,
    JobEventType,
    ProgressRecord,
    PublishedModel,
    Stage,
)
from services.contracts.models import Evaluation, ModelManifest, ObjectRef, TrunkManifest
from services.runtime.app import create_app
from services.runtime.database import Database
from services.runtime.objects import ObjectStore, open_store
from services.runtime.settings import Settings
from services.training.main import build_parts
from services.training.ray_api import HttpRayApi, RayStatus
from tests.servers.fake_ray import FakeRay

PATIENCE_S = 20


async def eventually(found: Callable[[], Awaitable[Any]], patience_s: float = PATIENCE_S) -> Any:
    """The first result that is true. Fails when there is none within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        result = await found()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {patience_s} s; the last answer was {result!r}")
        await asyncio.sleep(0.02)


@dataclass
class PlayedAttempt:
    """An attempt of a job, as the test plays it: what it writes to the bucket and what Ray says about it."""

    store: ObjectStore
    ray: FakeRay
    job_id: JobId
    number: int
    _seq: int = 0

    @property
    def submission_id(self) -> str:
        return submission_id(self.job_id, self.number)

    def run(self) -> None:
        self.ray.set(self.submission_id, RayStatus.RUNNING)

    def die(self) -> None:
        self.ray.set(self.submission_id, RayStatus.FAILED, "Job entrypoint command failed with exit code -9")

    def report(self, kind: JobEventType, stage: Stage, data: BaseModel | dict[str, Any], message: str = "…") -> None:
        shown = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
        record = ProgressRecord(
            seq=self._seq, at=utc_now(), attempt=self.number, type=kind, stage=stage, message=message, data=shown
        )
        key = names.attempt_progress(self.job_id, self.number, self._seq)
        assert self.store.put(key, record.model_dump_json().encode(), if_absent=True)
        self._seq += 1

    def publish(self, version: int = 1, model_name: str = "flowers", **options: Any) -> ModelManifest:
        manifest = make_manifest(version, model_name, job_id=self.job_id, attempt=self.number, **options)
        put_manifest(self.store, manifest)
        published = PublishedModel(model_name=model_name, version=version, accuracy=0.9, evaluated_split="test")
        self._end(published, None)
        self.ray.set(self.submission_id, RayStatus.SUCCEEDED)
        return manifest

    def predict(self, contents: dict[str, bytes], *, version: int = 1, quarantined: int = 0) -> BatchResult:
        """The labels are there: results with these contents, by file name."""
        refs: list[ObjectRef] = []
        for name in (PREDICTIONS_JSONL, PREDICTIONS_CSV, QUARANTINE_JSONL, QUARANTINE_CSV):
            data, key = contents.get(name, b""), names.prediction_file(self.job_id, name)
            self.store.put(key, data)
            refs.append(ObjectRef(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)))
        result = make_result(refs, version=version, quarantined=quarantined)
        self.store.put(names.prediction_result(self.job_id), result.model_dump_json().encode())
        self._end(None, None, result)
        self.ray.set(self.submission_id, RayStatus.SUCCEEDED)
        return result

    def fail(self, failure_class: FailureClass, code: str = "broken", message: str = "It broke.") -> None:
        self._end(None, Failure(failure_class=failure_class, code=code, message=message))
        self.ray.set(self.submission_id, RayStatus.FAILED, "Job entrypoint command failed with exit code 1")

    def _end(
        self, published: PublishedModel | None, failure: Failure | None, predicted: BatchResult | None = None
    ) -> None:
        outcome = AttemptOutcome(
            job_id=self.job_id,
            attempt=self.number,
            finished_at=utc_now(),
            published=published,
            failure=failure,
            predicted=predicted,
        )
        key = names.attempt_outcome(self.job_id, self.number)
        assert self.store.put(key, outcome.model_dump_json().encode(), if_absent=True)


def make_manifest(
    version: int,
    model_name: str = "flowers",
    *,
    job_id: str = "job_000000000000000000000001",
    attempt: int = 1,
    trunk: str = "a",
) -> ModelManifest:
    """A published version that is as real as its JSON."""
    ref = ObjectRef(key="x", sha256="0" * 64, size_bytes=1)
    return ModelManifest(
        model_name=model_name,
        version=version,
        created_at=utc_now(),
        job_id=JobId(job_id),
        attempt=attempt,
        trunk=TrunkManifest(
            trunk_id=TrunkId(trunk * 64),
            backbone=BackboneName.REKINDLE_TINY,
            weights="bundled",
            weights_sha256="1" * 64,
            image_size=64,
            cut="pooled",
            preprocessing_version=1,
            feature_dim=128,
            artefacts={"litert": ref},
            top=None,
        ),
        tail=ref,
        tail_sha256=f"{version:064x}",
        labels=["daisy", "rose"],
        spec=None,
        dataset_content_sha256=None,
        train_image_count=10,
        evaluation=Evaluation(
            split="test",
            image_count=4,
            accuracy=0.75,
            loss=0.5,
            calibration_error=0.1,
            classes=[],
            confusion_matrix=[[1, 1], [0, 2]],
        ),
        predictions=None,
        fingerprint=None,
    )


def make_result(refs: list[ObjectRef], *, version: int = 1, quarantined: int = 0) -> BatchResult:
    """What a batch prediction of three images made: labels as JSON lines and as a table, and the quarantine."""
    return BatchResult(
        model_name="flowers",
        version=version,
        trunk_id=TrunkId("a" * 64),
        weights_sha256="0" * 64,
        source_uri="s3://pets/new",
        file_count=3 + quarantined,
        image_count=3,
        quarantined_count=quarantined,
        ignored_count=0,
        labels=[LabelCount(label="rose", count=3)],
        predictions_jsonl=refs[0],
        predictions_csv=refs[1],
        quarantine_jsonl=refs[2],
        quarantine_csv=refs[3],
        finished_at=utc_now(),
    )


def put_manifest(store: ObjectStore, manifest: ModelManifest) -> None:
    key = names.model_manifest(manifest.model_name, manifest.version)
    store.put(key, manifest.model_dump_json().encode())


@dataclass
class TrainingGateway:
    """The started gateway and everything around it."""

    app: FastAPI
    client: httpx2.AsyncClient
    ray: FakeRay
    """Of no use where the gateway was given a real cluster."""
    store: ObjectStore
    database: Database
    settings: Settings
    folder: Path

    def images(self, name: str = "images", **counts: int) -> str:
        """The URI of a folder with that many files by class."""
        folder = self.folder / name
        for label, count in counts.items():
            (folder / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / label / f"{number}.jpg").write_bytes(b"not decoded here")
        folder.mkdir(parents=True, exist_ok=True)
        return folder.as_uri()

    async def dataset(self, name: str = "flowers") -> str:
        source = {"type": "prefix", "uri": self.images(daisy=3, rose=3)}
        response = await self.client.post("/v1/datasets", json={"name": name, "source": source})
        assert response.status_code == 201, response.text
        return response.json()["id"]

    async def job(self, **spec: Any) -> dict[str, Any]:
        body = {"dataset_id": await self.dataset(), "backbone": "rekindle_tiny"} | spec
        response = await self.client.post("/v1/training-jobs", json=body)
        assert response.status_code == 201, response.text
        return response.json()

    async def publish(self, version: int = 1) -> None:
        """A version of the model `flowers`."""
        job_id = (await self.job())["id"]
        (await self.attempt(job_id)).publish(version)
        await self.job_in(job_id, "succeeded")

    async def prediction(self, headers: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
        """An accepted batch prediction, by default of the model `flowers` on its own images."""
        source = {"type": "prefix", "uri": self.images(daisy=3, rose=3)}
        body = {"model_name": "flowers", "source": source} | spec
        response = await self.client.post("/v1/batch-predictions", json=body, headers=headers)
        assert response.status_code == 201, response.text
        return response.json()

    async def read(self, job_id: str) -> dict[str, Any]:
        """A training job or a batch prediction."""
        kind = "batch-predictions" if job_id.startswith("pred_") else "training-jobs"
        response = await self.client.get(f"/v1/{kind}/{job_id}")
        assert response.status_code == 200, response.text
        return response.json()

    async def job_in(self, job_id: str, *states: str) -> dict[str, Any]:
        """The job, as soon as it is in one of the states."""

        async def look() -> dict[str, Any] | None:
            job = await self.read(job_id)
            return job if job["state"] in states else None

        return await eventually(look)

    async def attempt(self, job_id: str, number: int = 1, patience_s: float = PATIENCE_S) -> PlayedAttempt:
        """The attempt, as soon as the cluster has it."""

        async def submitted() -> bool:
            return submission_id(JobId(job_id), number) in self.ray.jobs

        await eventually(submitted, patience_s)
        return PlayedAttempt(self.store, self.ray, JobId(job_id), number)

    async def events(self, job_id: str, after: int = 0) -> list[dict[str, Any]]:
        """The events so far, from the database."""
        # The stream of a job that goes on does not end, so this looks where the stream does.
        from services.training.jobs import queries

        async with self.database.session() as session:
            found = await queries.list_events(session, job_id, after=after, limit=10_000)
        return [event.model_dump(mode="json") for event in found]


@asynccontextmanager
async def training_gateway(
    folder: Path,
    database_url: str,
    ray: FakeRay | HttpRayApi | None = None,
    *,
    keep_bucket: str | None = None,
    **options: Any,
) -> AsyncGenerator[TrainingGateway, None]:
    """A gateway with a local bucket. `options` are settings."""
    values = {
        "reconcile_interval_s": 0.05,
        "retry_initial_s": 0.05,
        "retry_max_s": 0.2,
        "lease_s": 2,
        "spare_driver": False,
    } | options
    bucket = keep_bucket or (folder / "bucket").as_uri()
    settings = Settings(home=folder / "home", bucket=bucket, database_url=database_url, **values)
    played = ray if isinstance(ray, FakeRay) else FakeRay()
    cluster = ray or played
    database, store = Database(database_url), open_store(settings.bucket_uri)
    parts = build_parts(settings, database, store, cluster)
    app = create_app(
        service="training",
        title="t",
        description="d",
        version="0",
        settings=settings,
        routers=parts.routers,
        database=database,
        lifespan=parts.lifespan,
        readiness=parts.readiness,
        dependencies=parts.dependencies,
    )
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway", timeout=30) as client:
            yield TrainingGateway(app, client, played, store, database, settings, folder)


def problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that the response is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["code"] == code, body
    return body


@pytest.fixture
async def gateway(tmp_path: Path, empty_sqlite_url: str) -> AsyncIterator[TrainingGateway]:
    """A gateway on SQLite."""
    async with training_gateway(tmp_path, empty_sqlite_url) as started:
        yield started


@pytest.fixture
async def each_gateway(tmp_path: Path, database_url: str) -> AsyncIterator[TrainingGateway]:
    """A gateway on each kind of database."""
    async with training_gateway(tmp_path, database_url) as started:
        yield started
