"""A number that grows with every change of versions and aliases, so that what was read of them may be kept until then.

Kept by triggers: whoever writes, it grows in the same transaction. On PostgreSQL at its very end, so that no
transaction waits for another with the number's row locked.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = ("model_versions", "model_aliases")
GROW = "UPDATE registry_generation SET generation = generation + 1"


def upgrade() -> None:
    """It begins with 0."""
    table = op.create_table(
        "registry_generation",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry_generation"),
    )
    op.bulk_insert(table, [{"id": 1, "generation": 0}])
    if op.get_bind().dialect.name == "postgresql":
        _on_postgresql()
    else:
        _on_sqlite()


def _on_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION grow_registry_generation() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {GROW}; RETURN NULL; END $$"
    )
    for table in TABLES:
        op.execute(
            f"CREATE CONSTRAINT TRIGGER {table}_grow_generation AFTER INSERT OR UPDATE OR DELETE ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION grow_registry_generation()"
        )


def _on_sqlite() -> None:
    for table in TABLES:
        for change in ("INSERT", "UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_{change.lower()}_grows_generation AFTER {change} ON {table} BEGIN {GROW}; END"
            )
