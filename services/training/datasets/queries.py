"""The datasets table."""

import re

from pydantic import TypeAdapter
from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.datasets import Dataset, DatasetLayout, DatasetSource, DatasetState
from services.contracts.errors import NotFound
from services.contracts.ids import DatasetId
from services.contracts.pages import Page
from services.runtime.database.tables import DatasetRow
from services.training import cursors

_ID = re.compile(r"ds_[0-9a-f]{24}")
_SOURCE: TypeAdapter[DatasetSource] = TypeAdapter(DatasetSource)


async def find_row(session: AsyncSession, dataset_id: str, *, lock: bool = False) -> DatasetRow | None:
    """The row or None; with `lock`, other transactions wait until this one ends."""
    if _ID.fullmatch(dataset_id) is None:
        return None
    return await session.get(DatasetRow, dataset_id, with_for_update=lock, populate_existing=lock)


async def get_row(session: AsyncSession, dataset_id: str, *, lock: bool = False) -> DatasetRow:
    """The row. Raises `NotFound`."""
    row = await find_row(session, dataset_id, lock=lock)
    if row is None:
        raise NotFound(f"no dataset {dataset_id!r}: GET /v1/datasets lists them", {"dataset_id": dataset_id})
    return row


async def list_page(session: AsyncSession, *, limit: int, cursor: str | None, name: str | None = None) -> Page[Dataset]:
    """One page, newest first."""
    query = select(DatasetRow).order_by(DatasetRow.created_at.desc(), DatasetRow.id.desc()).limit(limit + 1)
    if name is not None:
        query = query.where(DatasetRow.name == name)
    if cursor is not None:
        at, key = cursors.decode(cursor)
        older = and_(DatasetRow.created_at == at, DatasetRow.id < key)
        query = query.where(or_(DatasetRow.created_at < at, older))
    rows = list(await session.scalars(query))
    shown = rows[:limit]
    following = cursors.encode(shown[-1].created_at, shown[-1].id) if len(rows) > limit else None
    return Page[Dataset](items=[to_dataset(row) for row in shown], next_cursor=following)


def to_dataset(row: DatasetRow) -> Dataset:
    """The row as the API shows it."""
    return Dataset(
        id=DatasetId(row.id),
        name=row.name,
        source=_SOURCE.validate_python(row.source, extra="ignore"),
        state=DatasetState(row.state),
        layout=None if row.layout is None else DatasetLayout.model_validate(row.layout, extra="ignore"),
        created_at=row.created_at,
    )


def to_row(dataset: Dataset) -> DatasetRow:
    """A row for a new dataset."""
    return DatasetRow(
        id=dataset.id,
        name=dataset.name,
        source=dataset.source.model_dump(mode="json"),
        state=dataset.state.value,
        layout=None if dataset.layout is None else dataset.layout.model_dump(mode="json"),
        created_at=dataset.created_at,
    )
