"""What a request's model name, version or alias means, asked of the database."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.errors import NotFound
from services.contracts.ids import TrunkId
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow, RegistryGenerationRow


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


@dataclass(frozen=True, slots=True)
class Target:
    """What a choice means: a version, and for an alias perhaps another one beside it."""

    main: ServedVersion
    split: ServedVersion | None = None
    """Answers `split_weight` of the requests in place of `main`."""
    split_weight: float = 0.0
    shadow: ServedVersion | None = None
    """Is scored on the images that `main` answers."""


async def find_target(session: AsyncSession, choice: VersionChoice) -> Target:
    """What is meant. Deleted versions do not exist; a shadow that does not exist is left out.

    Raises `NotFound`, whose message says whether it is the model, a version or the alias that is missing.
    """
    if choice.alias is None:
        return Target(await _find_version(session, choice.model_name, choice.version))
    row = await session.get(ModelAliasRow, (choice.model_name, choice.alias))
    if row is None:
        raise NotFound(
            f"model {choice.model_name!r} has no alias {choice.alias!r}",
            {"model_name": choice.model_name, "alias": choice.alias},
        )
    main = await _find_version(session, choice.model_name, row.version)
    if row.split_version is not None and row.split_weight is not None:
        split = await _find_version(session, choice.model_name, row.split_version)
        return Target(main, split=split, split_weight=row.split_weight)
    if row.shadow_version is not None:
        return Target(main, shadow=await _get_version(session, choice.model_name, row.shadow_version))
    return Target(main)


async def read_generation(session: AsyncSession) -> int:
    """What was found before stays true as long as this is the same."""
    return (await session.execute(select(RegistryGenerationRow.generation))).scalar_one()


async def _find_version(session: AsyncSession, model_name: str, number: int | None) -> ServedVersion:
    found = await _get_version(session, model_name, number)
    if found is not None:
        return found
    if number is None or await _get_version(session, model_name, None) is None:
        raise NotFound(f"there is no model {model_name!r}", {"model_name": model_name})
    raise NotFound(f"model {model_name!r} has no version {number}", {"model_name": model_name, "version": number})


async def _get_version(session: AsyncSession, model_name: str, number: int | None) -> ServedVersion | None:
    """The version, or the latest for None; None where it does not exist."""
    query = (
        select(ModelVersionRow.version, ModelVersionRow.trunk_id)
        .where(ModelVersionRow.model_name == model_name, ModelVersionRow.deleted_at.is_(None))
        .order_by(ModelVersionRow.version.desc())
        .limit(1)
    )
    wanted = query if number is None else query.where(ModelVersionRow.version == number)
    found = (await session.execute(wanted)).one_or_none()
    return None if found is None else ServedVersion(model_name, found.version, TrunkId(found.trunk_id))
