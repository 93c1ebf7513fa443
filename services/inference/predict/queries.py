"""What a request's model name, version or alias means, asked of the database."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.errors import NotFound
from services.contracts.ids import TrunkId
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow


@dataclass(frozen=True, slots=True)
class VersionChoice:
    """Which version a request asks for: a number, an alias, or, with neither, the latest."""

    model_name: str
    version: int | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A published version and the trunk that serves it."""

    model_name: str
    version: int
    trunk_id: TrunkId


async def find_version(session: AsyncSession, choice: VersionChoice) -> ServedVersion:
    """The version that is meant. Deleted versions do not exist.

    Raises `NotFound`, whose message says whether it is the model, the version or the alias that is missing.
    """
    number = choice.version if choice.alias is None else await _version_of_alias(session, choice)
    rows = (
        select(ModelVersionRow.version, ModelVersionRow.trunk_id)
        .where(ModelVersionRow.model_name == choice.model_name, ModelVersionRow.deleted_at.is_(None))
        .order_by(ModelVersionRow.version.desc())
        .limit(1)
    )
    wanted = rows if number is None else rows.where(ModelVersionRow.version == number)
    found = (await session.execute(wanted)).one_or_none()
    if found is not None:
        return ServedVersion(choice.model_name, found.version, TrunkId(found.trunk_id))
    if number is None or (await session.execute(rows)).one_or_none() is None:
        raise NotFound(f"there is no model {choice.model_name!r}", {"model_name": choice.model_name})
    raise NotFound(
        f"model {choice.model_name!r} has no version {number}", {"model_name": choice.model_name, "version": number}
    )


async def _version_of_alias(session: AsyncSession, choice: VersionChoice) -> int:
    row = await session.get(ModelAliasRow, (choice.model_name, choice.alias))
    if row is None:
        raise NotFound(
            f"model {choice.model_name!r} has no alias {choice.alias!r}",
            {"model_name": choice.model_name, "alias": choice.alias},
        )
    return row.version
