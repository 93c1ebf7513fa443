"""What can be done with datasets. Every change is committed, and in the bucket, before it is answered."""

import asyncio
import tempfile
from functools import partial
from typing import BinaryIO

from fastapi import Request
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import (
    Dataset,
    DatasetLayout,
    DatasetManifest,
    DatasetState,
    NewDataset,
    PrefixSource,
    PreflightReport,
    UploadSource,
)
from services.contracts.errors import Conflict, CorruptObject, NotFound
from services.contracts.ids import DatasetId, new_dataset_id
from services.contracts.pages import Page
from services.runtime.auth import Principal
from services.runtime.objects import ObjectStore, open_store
from services.runtime.settings import check_source_allowed
from services.training.context import Training
from services.training.datasets import queries
from services.training.datasets.archive import unpack
from services.training.datasets.archive_members import ArchiveLimits
from services.training.datasets.layout import read_layout
from services.training.datasets.uploads import announced_size, check_path, with_body
from services.training.idempotency import IdempotentRequest, find_reserved, reserve_id

CREATE_ROUTE = "POST /v1/datasets"
PRESIGNED_URL_S = 3600


async def create(training: Training, principal: Principal, body: NewDataset, key: str | None) -> Dataset:
    """Registers a dataset. A prefix is looked at first, and refused where it could not be trained on.

    Raises:
        SourceNotAllowed, SourceUnreadable, DatasetEmpty, DatasetTooFewClasses, ClassTooSmall: the prefix.
        IdempotencyKeyReused: the key came with another body.
    """
    request = IdempotentRequest(principal, CREATE_ROUTE, key, body)
    made = await find_reserved(training.database, request)
    async with training.database.session() as session:
        row = await queries.find_row(session, made) if made else None
    if row is not None:
        return queries.to_dataset(row)
    layout: DatasetLayout | None = None
    match body.source:
        case PrefixSource(uri=uri):
            check_source_allowed(uri, training.settings)
            layout = await asyncio.to_thread(lambda: read_layout(open_store(uri)))
            state = DatasetState.READY
        case UploadSource():
            state = DatasetState.AWAITING_UPLOAD
    dataset_id = await reserve_id(training.database, request, new_dataset_id)
    dataset = Dataset(
        id=DatasetId(dataset_id),
        name=body.name,
        source=body.source,
        state=state,
        layout=layout,
        created_at=utc_now(),
    )
    dataset = await asyncio.to_thread(_record_once, training.store, dataset)
    try:
        async with training.database.transaction() as session:
            if await queries.find_row(session, dataset_id) is None:
                session.add(queries.to_row(dataset))
    except IntegrityError:
        pass  # the same request, sent twice at a time: the other one's row stands
    return await get(training, dataset_id)


async def get(training: Training, dataset_id: str) -> Dataset:
    """One dataset. Raises `NotFound`."""
    async with training.database.session() as session:
        return queries.to_dataset(await queries.get_row(session, dataset_id))


async def list_page(training: Training, *, limit: int, cursor: str | None, name: str | None) -> Page[Dataset]:
    """One page of datasets, newest first."""
    async with training.database.session() as session:
        return await queries.list_page(session, limit=limit, cursor=cursor, name=name)


def source_uri(bucket_uri: str, dataset: Dataset) -> str:
    """Where the dataset's files are, without a trailing slash."""
    match dataset.source:
        case PrefixSource(uri=uri):
            return uri.rstrip("/")
        case UploadSource():
            return f"{bucket_uri}/{names.dataset_files(dataset.id)}".rstrip("/")


# --- uploads --------------------------------------------------------------------------------------------------------


async def put_file(training: Training, dataset_id: str, path: str, request: Request) -> int:
    """Stores the request's body as one file; returns its size in bytes. Sending a file again replaces it.

    Raises:
        NotFound, Conflict: no such dataset, or none that waits for uploads.
        CallerError: a path that cannot be.
        PayloadTooLarge: more than `max_upload_bytes`.
    """
    check_path(path)
    dataset = await _awaiting_upload(training, dataset_id)
    max_bytes = training.settings.max_upload_bytes
    size = announced_size(request, max_bytes)

    def store(body: BinaryIO) -> int:
        return training.store.put_stream(names.dataset_files(dataset.id) + path, body, size).size_bytes

    return await with_body(request, max_bytes, training.uploads, store)


async def put_archive(training: Training, dataset_id: str, request: Request) -> int:
    """Unpacks the request's body into the dataset; returns how many files it had.

    Nothing is stored unless the whole archive was received and checked. Raises what `archive.unpack` raises, and
    `NotFound` and `Conflict` as `put_file` does.
    """
    dataset = await _awaiting_upload(training, dataset_id)
    settings = training.settings
    announced_size(request, settings.max_archive_bytes)
    limits = ArchiveLimits(
        max_entries=settings.max_archive_entries,
        max_file_bytes=settings.max_upload_bytes,
        max_expansion_ratio=settings.max_archive_expansion_ratio,
    )
    prefix = names.dataset_files(dataset.id)

    def store(path: str, content: BinaryIO) -> None:
        training.store.put_stream(prefix + path, content)

    def receive_and_unpack(body: BinaryIO) -> int:
        # In the home and not in /tmp, which may be memory. Nameless, so nothing is left when the process dies.
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home) as file:
            while chunk := body.read(1024 * 1024):
                file.write(chunk)
            return unpack(file, limits, store)

    return await with_body(request, settings.max_archive_bytes, training.uploads, receive_and_unpack)


async def presign(training: Training, dataset_id: str, paths: list[str]) -> dict[str, str | None]:
    """For each path a URL that takes the file by PUT without a key, or None where the bucket gives none."""
    for path in paths:
        check_path(path)
    dataset = await _awaiting_upload(training, dataset_id)
    prefix = names.dataset_files(dataset.id)

    def urls() -> dict[str, str | None]:
        return {path: training.store.presign_put(prefix + path, PRESIGNED_URL_S) for path in paths}

    return await asyncio.to_thread(urls)


async def complete(training: Training, dataset_id: str) -> Dataset:
    """Ends the upload: the dataset is looked at and ready to train on. Completing it again changes nothing.

    Raises `DatasetEmpty`, `DatasetTooFewClasses` and `ClassTooSmall`; the upload then stays open.
    """
    dataset = await get(training, dataset_id)
    if dataset.state is DatasetState.READY:
        return dataset
    layout = await asyncio.to_thread(read_layout, training.store, names.dataset_files(dataset.id))
    ready = dataset.model_copy(update={"state": DatasetState.READY, "layout": layout})
    await asyncio.to_thread(_record, training.store, ready)
    async with training.database.transaction() as session:
        row = await queries.get_row(session, dataset_id, lock=True)
        row.state = ready.state.value
        row.layout = layout.model_dump(mode="json")
    return ready


async def _awaiting_upload(training: Training, dataset_id: str) -> Dataset:
    dataset = await get(training, dataset_id)
    if dataset.state is not DatasetState.AWAITING_UPLOAD:
        raise Conflict(
            f"dataset {dataset_id} takes no more files: its upload is complete or it was registered from a prefix; "
            "create another dataset",
            {"state": dataset.state.value},
        )
    return dataset


def _record_once(store: ObjectStore, dataset: Dataset) -> Dataset:
    """The dataset as it stands in the bucket: the record of the same request sent before is kept.

    A request that was held up must not put back what was completed in the meantime.
    """
    key = names.dataset_record(dataset.id)
    if store.put(key, dataset.model_dump_json().encode(), if_absent=True) is not None:
        return dataset
    return Dataset.model_validate_json(store.get(key), extra="ignore")


def _record(store: ObjectStore, dataset: Dataset) -> None:
    store.put(names.dataset_record(dataset.id), dataset.model_dump_json().encode())


# --- preflight report -----------------------------------------------------------------------------------------------


async def report(training: Training, dataset_id: str) -> PreflightReport:
    """What the newest preflight found. Raises `NotFound` before there was one."""
    dataset = await get(training, dataset_id)
    found = await asyncio.to_thread(partial(_newest_report, training.store, dataset.id))
    if found is None:
        raise NotFound(
            f"no job has looked at the images of dataset {dataset_id} yet: start a training job first",
            {"dataset_id": dataset_id},
        )
    return found


def _newest_report(store: ObjectStore, dataset_id: DatasetId) -> PreflightReport | None:
    newest = max(
        store.list(names.dataset_manifests(dataset_id)), key=lambda info: (info.modified_at, info.key), default=None
    )
    if newest is None:
        return None
    try:
        return DatasetManifest.model_validate_json(store.get(newest.key)).report
    except ValidationError as error:
        raise CorruptObject(f"{newest.key} is not a dataset manifest: {error}") from error
