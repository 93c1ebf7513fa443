"""A second version of an alias: one that answers a share of the requests, or a challenger in its shadow."""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

DOUBLE: sa.Double[float] = sa.Double()


def upgrade() -> None:
    """Aliases of before have one version."""
    op.add_column("model_aliases", sa.Column("split_version", sa.Integer(), nullable=True))
    op.add_column("model_aliases", sa.Column("split_weight", DOUBLE, nullable=True))
    op.add_column("model_aliases", sa.Column("shadow_version", sa.Integer(), nullable=True))
