"""The model_versions and model_aliases tables."""

from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.aliases import MAX_VERSION, AliasShadow, AliasSplit, ModelAlias
from services.contracts.errors import NotFound
from services.contracts.ids import TrunkId
from services.contracts.models import Model, ModelManifest, ModelVersion
from services.contracts.pages import Page
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow
from services.training import cursors

MAX_NAME_CHARACTERS = 64


async def list_models(session: AsyncSession, *, limit: int, cursor: str | None) -> Page[Model]:
    """One page of models that have versions, the one published to last first."""
    updated_at = func.max(ModelVersionRow.created_at)
    query = (
        select(ModelVersionRow.model_name)
        .where(ModelVersionRow.deleted_at.is_(None))
        .group_by(ModelVersionRow.model_name)
        .order_by(updated_at.desc(), ModelVersionRow.model_name.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        at, key = cursors.decode(cursor)
        same = (updated_at == at) & (ModelVersionRow.model_name < key)
        query = query.having(or_(updated_at < at, same))
    names = [str(name) for name in await session.scalars(query)]
    models = [await get_model(session, name) for name in names[:limit]]
    following = cursors.encode(models[-1].updated_at, models[-1].name) if len(names) > limit else None
    return Page[Model](items=models, next_cursor=following)


async def get_model(session: AsyncSession, name: str) -> Model:
    """A model and its aliases. Raises `NotFound`, also when all its versions were deleted."""
    query = select(ModelVersionRow).where(ModelVersionRow.model_name == name, ModelVersionRow.deleted_at.is_(None))
    newest = await session.scalar(query.order_by(ModelVersionRow.version.desc()).limit(1)) if _is_name(name) else None
    if newest is None:
        raise NotFound(f"no model {name!r}: GET /v1/models lists them", {"model_name": name})
    created_at = ModelVersionRow.created_at
    oldest = await session.scalar(query.with_only_columns(func.min(created_at)))
    updated_at = await session.scalar(query.with_only_columns(func.max(created_at)))
    aliases = await session.scalars(
        select(ModelAliasRow).where(ModelAliasRow.model_name == name).order_by(ModelAliasRow.alias)
    )
    manifest = ModelManifest.model_validate(newest.manifest)
    return Model(
        name=name,
        latest_version=newest.version,
        labels=manifest.labels,
        accuracy=None if manifest.evaluation is None else manifest.evaluation.accuracy,
        aliases=[to_alias(row) for row in aliases],
        created_at=oldest or newest.created_at,
        updated_at=updated_at or newest.created_at,
    )


async def list_versions(session: AsyncSession, name: str, *, limit: int, cursor: str | None) -> Page[ModelVersion]:
    """One page of a model's versions, newest first. Raises `NotFound`."""
    await get_model(session, name)
    query = select(ModelVersionRow).where(ModelVersionRow.model_name == name, ModelVersionRow.deleted_at.is_(None))
    if cursor is not None:
        _, key = cursors.decode(cursor)
        query = query.where(ModelVersionRow.version < (int(key) if key.isascii() and key.isdigit() else 0))
    rows = list(await session.scalars(query.order_by(ModelVersionRow.version.desc()).limit(limit + 1)))
    shown = rows[:limit]
    following = cursors.encode(shown[-1].created_at, str(shown[-1].version)) if len(rows) > limit else None
    return Page[ModelVersion](items=[to_version(row) for row in shown], next_cursor=following)


async def get_version_row(
    session: AsyncSession, name: str, version: int, *, lock: bool = False, deleted_too: bool = False
) -> ModelVersionRow:
    """A version, by default one that was not deleted. Raises `NotFound`."""
    row = None
    if _is_name(name) and 1 <= version <= MAX_VERSION:
        row = await session.get(ModelVersionRow, (name, version), with_for_update=lock, populate_existing=lock)
    if row is None or (row.deleted_at is not None and not deleted_too):
        raise NotFound(
            f"model {name!r} has no version {version}: GET /v1/models/{name}/versions lists them",
            {"model_name": name, "version": version},
        )
    return row


async def find_alias(session: AsyncSession, name: str, alias: str, *, lock: bool = False) -> ModelAliasRow | None:
    """The alias, or None; with `lock`, other transactions wait until this one ends."""
    if not (_is_name(name) and _is_name(alias)):
        return None
    return await session.get(ModelAliasRow, (name, alias), with_for_update=lock, populate_existing=lock)


async def list_aliases_of(session: AsyncSession, name: str, version: int) -> list[str]:
    """The aliases that refer to a version, in any role."""
    roles = (ModelAliasRow.version, ModelAliasRow.split_version, ModelAliasRow.shadow_version)
    query = select(ModelAliasRow.alias).where(
        ModelAliasRow.model_name == name, or_(*(role == version for role in roles))
    )
    return list(await session.scalars(query.order_by(ModelAliasRow.alias)))


async def list_trunks(session: AsyncSession) -> list[TrunkId]:
    """The trunks that published versions need, sorted."""
    query = select(ModelVersionRow.trunk_id).where(ModelVersionRow.deleted_at.is_(None)).distinct()
    return [TrunkId(trunk_id) for trunk_id in await session.scalars(query.order_by(ModelVersionRow.trunk_id))]


async def insert_version(session: AsyncSession, manifest: ModelManifest) -> None:
    """Shows a published version. One that is shown already stays as it is."""
    key = (manifest.model_name, manifest.version)
    if await session.get(ModelVersionRow, key) is None:
        session.add(to_row(manifest))


def to_row(manifest: ModelManifest, deleted_at: datetime | None = None) -> ModelVersionRow:
    """A row for a version in the bucket."""
    return ModelVersionRow(
        model_name=manifest.model_name,
        version=manifest.version,
        created_at=manifest.created_at,
        job_id=manifest.job_id,
        trunk_id=manifest.trunk.trunk_id,
        manifest=manifest.model_dump(mode="json"),
        deleted_at=deleted_at,
    )


def to_version(row: ModelVersionRow) -> ModelVersion:
    """The row as the API shows it."""
    manifest = ModelManifest.model_validate(row.manifest)
    return ModelVersion(
        model_name=manifest.model_name,
        version=manifest.version,
        created_at=manifest.created_at,
        job_id=manifest.job_id,
        backbone=manifest.trunk.backbone,
        image_size=manifest.trunk.image_size,
        labels=manifest.labels,
        train_image_count=manifest.train_image_count,
        evaluation=manifest.evaluation,
        fit=manifest.fit,
        parent_comparison=manifest.parent_comparison,
        backbone_choice=manifest.backbone_choice,
        weights_sha256=manifest.tail_sha256,
        trunk_id=manifest.trunk.trunk_id,
    )


def to_alias(row: ModelAliasRow) -> ModelAlias:
    """The row as the API shows it."""
    return ModelAlias(
        alias=row.alias, version=row.version, split=split_of(row), shadow=shadow_of(row), updated_at=row.updated_at
    )


def split_of(row: ModelAliasRow) -> AliasSplit | None:
    """The version that answers a share of the requests, if there is one."""
    if row.split_version is None or row.split_weight is None:
        return None
    return AliasSplit(version=row.split_version, weight=row.split_weight)


def shadow_of(row: ModelAliasRow) -> AliasShadow | None:
    """The challenger, if there is one."""
    return None if row.shadow_version is None else AliasShadow(version=row.shadow_version)


def point(
    row: ModelAliasRow, version: int, split: AliasSplit | None, shadow: AliasShadow | None, updated_at: datetime
) -> None:
    """Makes the alias refer to these versions and no others."""
    row.version = version
    row.split_version, row.split_weight = (None, None) if split is None else (split.version, split.weight)
    row.shadow_version = None if shadow is None else shadow.version
    row.updated_at = updated_at


def _is_name(name: str) -> bool:
    """Whether the database may be asked for it."""
    return "\0" not in name and len(name) <= MAX_NAME_CHARACTERS
