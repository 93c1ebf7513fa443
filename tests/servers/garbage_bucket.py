"""Buckets of jobs and models in every state, made by hand, and what of them must outlive a collection."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from services.contracts import names
from services.contracts.aliases import AliasRecord
from services.contracts.backbones import BackboneName
from services.contracts.batch_predictions import (
    PREDICTIONS_CSV,
    PREDICTIONS_JSONL,
    QUARANTINE_CSV,
    QUARANTINE_JSONL,
    BatchPredictionSpec,
    DatasetFiles,
)
from services.contracts.ids import DatasetId, JobId, TrunkId
from services.contracts.jobs import (
    JobKind,
    JobOutcome,
    JobRecord,
    JobState,
    ParentVersion,
    PublishedModel,
    TrainingJobSpec,
)
from services.contracts.models import ModelManifest, ObjectRef, VersionClaim, VersionDeletion
from services.runtime.objects import ObjectStore
from tests.servers.training import make_manifest, make_result

LONG_AGO = timedelta(days=400)
DATASET = DatasetId("ds_" + "1" * 24)


def job_id(number: int) -> JobId:
    return JobId(f"job_{number:024x}")


def whole_shard() -> bytes:
    """The smallest feature shard: one row of one feature."""
    header = (
        b'{"features":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"sha256":{"dtype":"U8","shape":[1,32],"data_offsets":[4,36]},'
        b'"view":{"dtype":"U8","shape":[1],"data_offsets":[36,37]}}'
    )
    return len(header).to_bytes(8, "little") + header + bytes(37)


@dataclass
class GarbageBucket:
    """A bucket to fill. Whatever is written notes whether it must be `kept` or is `garbage`."""

    store: ObjectStore
    now: datetime
    kept: set[str] = field(default_factory=set[str])
    garbage: set[str] = field(default_factory=set[str])

    def put(self, key: str, data: bytes, *, garbage: bool) -> ObjectRef:
        self.store.put(key, data)
        (self.garbage if garbage else self.kept).add(key)
        return ObjectRef(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def job(
        self,
        number: int,
        *,
        ended: timedelta | None = LONG_AGO,
        published: tuple[str, int] | None = None,
        model_name: str = "flowers",
        garbage: bool | None = None,
        parent: tuple[str, int] | None = None,
    ) -> JobId:
        """A job with two attempts, checkpoints and per-image predictions of both; `ended` None: it still runs.

        `garbage` says whether its checkpoints are, by default those of a job that has ended; `parent` what it retrains.
        """
        job, is_garbage = job_id(number), ended is not None if garbage is None else garbage
        record = JobRecord(
            job_id=job,
            kind=JobKind.TRAIN,
            model_name=model_name,
            created_at=self.now - LONG_AGO,
            spec=TrainingJobSpec(
                dataset_id=DATASET,
                backbone=BackboneName.REKINDLE_TINY,
                parent=None if parent is None else ParentVersion(model_name=parent[0], version=parent[1]),
            ),
            source_uri="s3://images",
        )
        self.put(names.job_spec(job), record.model_dump_json().encode(), garbage=False)
        for attempt in (1, 2):
            self.put(names.attempt_progress(job, attempt, 0), b"{}", garbage=False)
            self.put(names.job_report(job, attempt), b"[]", garbage=is_garbage)
            self.put(f"{names.checkpoint_prefix(job, attempt, 0, 7)}state-1.safetensors", b"state", garbage=is_garbage)
            self.put(names.checkpoint_manifest(job, attempt, 0, 7), b"{}", garbage=is_garbage)
        if ended is not None:
            self.end(job, ended, published)
        return job

    def prediction(
        self, number: int, *, ended: timedelta | None = LONG_AGO, succeeded: bool = True, version: int = 1
    ) -> JobId:
        """A batch prediction with the model `flowers`, with its parts and, where it has succeeded, its results."""
        job, is_over = JobId(f"pred_{number:024x}"), ended is not None
        record = JobRecord(
            job_id=job,
            kind=JobKind.PREDICT,
            model_name="flowers",
            model_version=version,
            created_at=self.now - LONG_AGO,
            spec=None,
            source_uri="s3://images",
            prediction=BatchPredictionSpec(model_name="flowers", source=DatasetFiles(dataset_id=DATASET)),
        )
        self.put(names.job_spec(job), record.model_dump_json().encode(), garbage=False)
        for key in (
            names.prediction_snapshot(job),
            names.prediction_page(job, 1, 0),
            names.prediction_shard(job, 0),
            names.prediction_shard(job, 1),
        ):
            self.put(key, b"{}", garbage=is_over)
        is_whole = is_over and succeeded
        refs = [
            self.put(names.prediction_file(job, name), b"a line", garbage=is_over and not is_whole)
            for name in (PREDICTIONS_JSONL, PREDICTIONS_CSV, QUARANTINE_JSONL, QUARANTINE_CSV)
        ]
        if is_whole:
            self.put(names.prediction_result(job), b"{}", garbage=False)
        if ended is not None:
            outcome = JobOutcome(
                job_id=job,
                state=JobState.SUCCEEDED if succeeded else JobState.CANCELLED,
                attempt=1,
                finished_at=self.now - ended,
                published=None,
                failure=None,
                predicted=make_result(refs, version=version) if succeeded else None,
            )
            self.put(names.job_outcome(job), outcome.model_dump_json().encode(), garbage=False)
        return job

    def end(self, job: JobId, ago: timedelta, published: tuple[str, int] | None) -> None:
        result = None
        if published is not None:
            result = PublishedModel(model_name=published[0], version=published[1], accuracy=None, evaluated_split=None)
        outcome = JobOutcome(
            job_id=job,
            state=JobState.SUCCEEDED if result else JobState.FAILED,
            attempt=2,
            finished_at=self.now - ago,
            published=result,
            failure=None,
        )
        self.put(names.job_outcome(job), outcome.model_dump_json().encode(), garbage=False)

    def claim(self, job: JobId, version: int, model_name: str = "flowers", *, dead: bool) -> None:
        """The job has the number, and its first attempt left a tail; `dead`: that is garbage."""
        claim = VersionClaim(job_id=job).model_dump_json().encode()
        self.put(names.model_claim(model_name, version), claim, garbage=False)
        self.put(names.model_object(model_name, version, 1, "tail.safetensors"), b"first", garbage=dead)

    def version(
        self, job: JobId, version: int, model_name: str = "flowers", *, trunk: str = "a", dead: bool = True
    ) -> ModelManifest:
        """Published by the job's second attempt, with its predictions."""
        self.claim(job, version, model_name, dead=dead)
        tail = self.put(names.model_object(model_name, version, 2, "tail.safetensors"), b"second", garbage=False)
        report = self.put(names.job_report(job, 2), b"[]", garbage=False)
        self.garbage.discard(report.key)
        made = make_manifest(version, model_name, job_id=job, attempt=2, trunk=trunk)
        manifest = made.model_copy(update={"tail": tail, "predictions": report})
        self.put(names.model_manifest(model_name, version), manifest.model_dump_json().encode(), garbage=False)
        for key in self.exports(manifest):
            self.put(key, b"an export", garbage=False)
        return manifest

    @staticmethod
    def exports(manifest: ModelManifest) -> set[str]:
        """The keys of an export of it, and of a build that failed before."""
        version = (manifest.model_name, manifest.version)
        return {
            names.model_export(*version, "onnx"),
            names.model_export_archive(*version, "onnx", "0" * 64),
            names.model_export_failure(*version, "onnx", 1),
        }

    def delete(self, manifest: ModelManifest, ago: timedelta = LONG_AGO, *, garbage: bool = True) -> None:
        """The version was deleted; `garbage`: its objects go."""
        deletion = VersionDeletion(deleted_at=self.now - ago).model_dump_json().encode()
        self.put(names.model_deletion(manifest.model_name, manifest.version), deletion, garbage=False)
        refs = {ref.key for ref in (manifest.tail, manifest.predictions) if ref is not None}
        refs |= self.exports(manifest)
        if garbage:
            self.kept -= refs
            self.garbage |= refs

    def alias(self, alias: str, version: int, model_name: str = "flowers", **beside: Any) -> None:
        record = AliasRecord(alias=alias, version=version, updated_at=self.now - LONG_AGO, **beside)
        self.put(names.model_alias(model_name, alias), record.model_dump_json().encode(), garbage=False)

    def keep(self, *prefixes: str) -> None:
        """What is below the prefixes must stay after all."""
        spared = {key for key in self.garbage if key.startswith(prefixes)}
        self.garbage -= spared
        self.kept |= spared

    def damage(self, key: str) -> None:
        self.store.put(key, b'{"half": ')

    def features(self, trunk: str, shard: int, data: bytes, *, garbage: bool) -> None:
        self.put(names.feature_shard(TrunkId(trunk * 64), f"{shard:064x}"), data, garbage=garbage)

    def listed(self) -> set[str]:
        return {info.key for info in self.store.list("")}
