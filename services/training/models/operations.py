"""What can be done with models. Aliases and deletions are copied to the bucket before they are answered."""

import asyncio
from datetime import timedelta

from pydantic import JsonValue
from sqlalchemy.exc import IntegrityError

from services.contracts import names
from services.contracts.aliases import AliasChange, AliasShadow, AliasSplit, ModelAlias, shown_target
from services.contracts.base import utc_now
from services.contracts.errors import CallerError, Conflict, NotFound
from services.contracts.models import Model, ModelVersion
from services.contracts.pages import Page
from services.runtime.database.tables import ModelAliasRow
from services.training.context import Training
from services.training.models import copies, queries

RESERVED_ALIAS = "latest"
_RACES = 5


async def list_models(training: Training, *, limit: int, cursor: str | None) -> Page[Model]:
    """One page of models."""
    async with training.database.session() as session:
        return await queries.list_models(session, limit=limit, cursor=cursor)


async def get_model(training: Training, name: str) -> Model:
    """One model. Raises `NotFound`."""
    async with training.database.session() as session:
        return await queries.get_model(session, name)


async def list_versions(training: Training, name: str, *, limit: int, cursor: str | None) -> Page[ModelVersion]:
    """One page of a model's versions. Raises `NotFound`."""
    async with training.database.session() as session:
        return await queries.list_versions(session, name, limit=limit, cursor=cursor)


async def get_version(training: Training, name: str, version: int) -> ModelVersion:
    """One version. Raises `NotFound`."""
    async with training.database.session() as session:
        return queries.to_version(await queries.get_version_row(session, name, version))


async def put_alias(training: Training, name: str, alias: str, change: AliasChange) -> ModelAlias:
    """Points an alias at a version, and at the one beside it, if it refers to what the caller expects.

    Raises:
        NotFound: one of the versions is not there.
        Conflict: the alias refers to something else than expected; `details` has what (version 0: nothing).
        CallerError: `latest`, which is always the newest version.
    """
    if alias == RESERVED_ALIAS:
        raise CallerError("the alias 'latest' always means the newest version: choose another name")
    for _ in range(_RACES):
        try:
            moved = await _move_alias(training, name, alias, change)
        except IntegrityError:
            continue  # created twice at a time; now it is there
        await _copy_alias(training, name, alias)
        return moved
    raise Conflict(f"the alias {alias!r} of model {name!r} is being changed by others: try again")


async def _move_alias(training: Training, name: str, alias: str, change: AliasChange) -> ModelAlias:
    async with training.database.transaction() as session:
        # Locked, so that none can be deleted in between; in order, so that two changes never wait for each other.
        for version in sorted((change.version, *change.others)):
            await queries.get_version_row(session, name, version, lock=True)
        row = await queries.find_alias(session, name, alias, lock=True)
        actual = None if row is None else queries.to_alias(row)
        is_there = actual is not None and _target(actual) == change.target
        # Repeating a change whose answer got lost is no conflict.
        if not is_there and not _is_expected(actual, change):
            raise _moved(name, alias, actual, change)
        if row is None:
            row = ModelAliasRow(model_name=name, alias=alias)
            queries.point(row, *change.target, utc_now())
            session.add(row)
        elif not is_there:
            # Later than before on every clock: a restore tells the newer record by it.
            later = max(utc_now(), row.updated_at + timedelta(microseconds=1))
            queries.point(row, *change.target, later)
        await session.flush()
        return queries.to_alias(row)


def _target(alias: ModelAlias) -> tuple[int, AliasSplit | None, AliasShadow | None]:
    return alias.version, alias.split, alias.shadow


def _is_expected(actual: ModelAlias | None, change: AliasChange) -> bool:
    if change.expected is not None:
        return actual is not None and _target(actual) == change.expected.target
    version = 0 if actual is None else actual.version
    return change.expected_version is None or change.expected_version == version


def _moved(name: str, alias: str, actual: ModelAlias | None, change: AliasChange) -> Conflict:
    now = "does not exist" if actual is None else f"refers to {shown_target(actual)}"
    expected = f"version {change.expected_version}" if change.expected is None else shown_target(change.expected)
    details: dict[str, JsonValue] = {"actual_version": 0 if actual is None else actual.version}
    if actual is not None and change.expected is not None:
        details["actual"] = actual.model_dump(mode="json", include={"version", "split", "shadow"})
    return Conflict(
        f"the alias {alias!r} of model {name!r} {now}, not to {expected}: look again before you move it", details
    )


async def delete_alias(training: Training, name: str, alias: str) -> None:
    """Removes an alias. Raises `NotFound`."""
    async with training.database.transaction() as session:
        row = await queries.find_alias(session, name, alias, lock=True)
        if row is not None:
            await session.delete(row)
    # Also where it was gone: the one who removed it may have died before the bucket heard of it.
    await _copy_alias(training, name, alias)
    if row is None:
        raise NotFound(f"model {name!r} has no alias {alias!r}", {"model_name": name, "alias": alias})


async def _copy_alias(training: Training, name: str, alias: str) -> None:
    """Makes the bucket's record what the database says, after the change was committed and before it is answered.

    The record is replaced only where it still is what it was before the database was asked. So of several that copy at
    a time, a slow one never puts back what a faster one has brought up to date, even where it is killed right after.
    """
    key = names.model_alias(name, alias)
    for _ in range(_RACES * 2):
        standing = await asyncio.to_thread(copies.read_alias, training.store, key)
        async with training.database.session() as session:
            row = await queries.find_alias(session, name, alias)
        if await asyncio.to_thread(copies.write_alias, training.store, key, alias, row, standing):
            return
    raise Conflict(f"the alias {alias!r} of model {name!r} is being changed by others: try again")


async def delete_version(training: Training, name: str, version: int) -> None:
    """Deletes a version: it is no longer shown or served. Its number is never used again. May be repeated.

    Raises:
        NotFound: no such version.
        Conflict: aliases refer to it; `details` has which.
    """
    async with training.database.transaction() as session:
        row = await queries.get_version_row(session, name, version, lock=True, deleted_too=True)
        aliases = await queries.list_aliases_of(session, name, version)
        if aliases:
            shown = ", ".join(map(repr, aliases))
            raise Conflict(
                f"version {version} of model {name!r} is {shown}: move or delete that alias first",
                {"aliases": [*aliases]},
            )
        deleted_at = row.deleted_at or utc_now()
        row.deleted_at = deleted_at
    await asyncio.to_thread(copies.write_deletion, training.store, name, version, deleted_at)
    training.published.send()
