"""Exports of a version: built once on the cluster, kept in the bucket, and streamed from there.

Nothing is remembered here. Whoever asks looks at the bucket and at the cluster, and takes the one next step. Two that
ask at once start one build: its submission id says which it is, and Ray takes an id once. A build that was killed left
no account of itself, so the next question notes that and starts another.
"""

import asyncio
import shlex
from collections.abc import Sequence
from datetime import timedelta

import structlog
from pydantic import ValidationError

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import CorruptObject, ExportFailed, NotFound
from services.contracts.exports import ExportFailure, ExportFormat, ExportManifest, ExportStatus
from services.contracts.ids import export_submission_id
from services.contracts.jobs import PROCESS_LOST, Failure, FailureClass
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore
from services.training.context import Training
from services.training.downloads import Download, download
from services.training.models import queries
from services.training.ray_api import RayStatus, Submission

RETRY_AFTER_S = 2
FAILURE_TOLD = timedelta(seconds=60)
"""For so long a build's failure is the answer. Then whoever asks starts another: what was missing may be there by
now."""
LOST_IN_A_ROW = 3
"""Builds that nobody is to blame for are followed by others at once, but after so many the failure is told."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def export(training: Training, name: str, version: int, form: ExportFormat) -> Download | ExportStatus:
    """The archive, or, while there is none, what its build is at; one is started where none runs.

    Raises:
        NotFound: no such version.
        ExportFailed: the build failed less than a minute ago.
        ClusterUnavailable, ObjectStoreUnavailable: try again.
    """
    async with training.database.session() as session:
        row = await queries.get_version_row(session, name, version)
    model = ModelManifest.model_validate(row.manifest)
    while True:
        found = await _find(training.store, model, form)
        if found is not None:
            return found
        failures = await asyncio.to_thread(_failures, training.store, model, form)
        build = failures[-1].build + 1 if failures else 1
        submission = _submission(training.store.uri, model, form, build)
        job = await training.ray.job(submission.submission_id)
        if job is None:
            _tell(failures, form)
            await training.ray.submit(submission)
            log.info("export.submitted", model=name, version=version, format=form, build=build)
        elif job.status not in (RayStatus.PENDING, RayStatus.RUNNING):
            # It is over. What it wrote before that counts.
            found = await _find(training.store, model, form)
            if found is not None:
                return found
            await asyncio.to_thread(_note_lost, training.store, model, form, build, job.message)
            continue
        return ExportStatus(
            model_name=name,
            version=version,
            format=form,
            state="running" if job is not None and job.status is RayStatus.RUNNING else "pending",
            build=build,
            submission_id=submission.submission_id,
            retry_after_s=RETRY_AFTER_S,
        )


def archive_name(name: str, version: int, form: ExportFormat) -> str:
    """What the archive is called on the client's side."""
    return f"{name}-v{version}-{form}.zip"


async def _find(store: ObjectStore, model: ModelManifest, form: ExportFormat) -> Download | None:
    """The archive, where it is there with its size."""
    key = names.model_export(model.model_name, model.version, form)
    try:
        manifest = ExportManifest.model_validate_json(await asyncio.to_thread(store.get, key))
        return await download(store, manifest.archive)
    except (NotFound, CorruptObject, ValidationError):
        return None  # also where it is damaged: it is built again


def _failures(store: ObjectStore, model: ModelManifest, form: ExportFormat) -> list[ExportFailure]:
    """Of all builds that left no archive, the first one first."""
    prefix = names.model_export_failures(model.model_name, model.version, form)
    return [ExportFailure.model_validate_json(store.get(info.key)) for info in store.list(prefix)]


def _tell(failures: Sequence[ExportFailure], form: ExportFormat) -> None:
    """Raises `ExportFailed` where the last failure is to be told."""
    if not failures or failures[-1].finished_at <= utc_now() - FAILURE_TOLD:
        return
    last = failures[-1].failure
    if last.failure_class is FailureClass.INFRASTRUCTURE and len(failures) % LOST_IN_A_ROW:
        return
    raise ExportFailed(
        f"the {form} archive could not be built: {last.message.rstrip('.')}. Asking again after a minute starts "
        "another build",
        {"code": last.code, "build": failures[-1].build, **last.details},
    )


def _note_lost(store: ObjectStore, model: ModelManifest, form: ExportFormat, build: int, said: str) -> None:
    """A build that failed has said so itself, and that stays; one that was killed has not."""
    first = said.strip().partition("\n")[0]
    message = "the build ended and left no archive"
    failure = Failure(
        failure_class=FailureClass.INFRASTRUCTURE,
        code=PROCESS_LOST,
        message=f"{message}; Ray says: {first[:500]}" if first else message,
    )
    record = ExportFailure(build=build, failure=failure, finished_at=utc_now())
    key = names.model_export_failure(model.model_name, model.version, form, build)
    store.put(key, record.model_dump_json().encode(), if_absent=True)


def _submission(bucket_uri: str, model: ModelManifest, form: ExportFormat, build: int) -> Submission:
    name, version = model.model_name, model.version
    return Submission(
        submission_id=export_submission_id(model.job_id, form, build),
        entrypoint=(
            f"python -m ray_cluster.export.build --bucket {shlex.quote(bucket_uri)} --model {shlex.quote(name)} "
            f"--version {version} --format {form} --build {build}"
        ),
        metadata={"name": f"{name} v{version} as {form}", "model_name": name, "version": str(version)},
    )
