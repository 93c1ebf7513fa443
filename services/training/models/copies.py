"""Copies of aliases and deletions in the bucket, from which `rekindle restore` rebuilds them.

The database is changed first, then the copy, then the request is answered. A gateway that dies between the first two
leaves an older copy, which `heal` brings up to date; nobody was told that the change was made.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from services.contracts import names
from services.contracts.aliases import AliasRecord
from services.contracts.base import utc_now
from services.contracts.errors import NotFound
from services.contracts.models import VersionDeletion
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow
from services.runtime.objects import ObjectStore
from services.training.context import Training
from services.training.models.queries import shadow_of, split_of


@dataclass(frozen=True, slots=True)
class Standing:
    """An alias's record as it stands in the bucket."""

    record: AliasRecord
    etag: str


def read_alias(store: ObjectStore, key: str) -> Standing | None:
    """The record, or None where there is none."""
    try:
        stored = store.get_with_etag(key)
    except NotFound:
        return None
    return Standing(AliasRecord.model_validate_json(stored.data), stored.etag)


def write_alias(store: ObjectStore, key: str, alias: str, row: ModelAliasRow | None, standing: Standing | None) -> bool:
    """Makes the record what the row says, None for a deleted alias; False where the record has changed since.

    The row must have been read after the record. A deleted alias leaves a record that says so: an object that is
    simply gone could be put back by whoever read the row before.
    """
    if row is None:
        if standing is None or standing.record.version is None:
            return True
        record = AliasRecord(alias=alias, version=None, updated_at=utc_now())
    else:
        record = AliasRecord(
            alias=alias,
            version=row.version,
            split=split_of(row),
            shadow=shadow_of(row),
            updated_at=row.updated_at,
        )
        if standing is not None and standing.record == record:
            return True
    data = record.model_dump_json().encode()
    if standing is None:
        return store.put(key, data, if_absent=True) is not None
    return store.put(key, data, if_match=standing.etag) is not None


def write_deletion(store: ObjectStore, name: str, version: int, deleted_at: datetime) -> None:
    """Notes that the version was deleted. May be repeated."""
    deletion = VersionDeletion(deleted_at=deleted_at)
    store.put(names.model_deletion(name, version), deletion.model_dump_json().encode(), if_absent=True)


async def heal(training: Training) -> None:
    """Writes the copies that are missing or older than the database, e.g. after a gateway died before it wrote them.

    A copy that is newer, or of which the database knows nothing, stays: then it is the database that has lost
    something. Raises `ObjectStoreUnavailable` and `DatabaseUnavailable`; it may be repeated.
    """
    async with training.database.session() as session:
        aliases = list(await session.scalars(select(ModelAliasRow)))
        query = select(ModelVersionRow).where(ModelVersionRow.deleted_at.is_not(None))
        deleted = list(await session.scalars(query))
    for row in aliases:
        await asyncio.to_thread(_heal_alias, training.store, row)
    for row in deleted:
        if row.deleted_at is not None:
            await asyncio.to_thread(write_deletion, training.store, row.model_name, row.version, row.deleted_at)


def _heal_alias(store: ObjectStore, row: ModelAliasRow) -> None:
    """Where somebody else writes the copy meanwhile, that one is as new or newer."""
    key = names.model_alias(row.model_name, row.alias)
    standing = read_alias(store, key)
    if standing is None or standing.record.updated_at < row.updated_at:
        write_alias(store, key, row.alias, row, standing)
