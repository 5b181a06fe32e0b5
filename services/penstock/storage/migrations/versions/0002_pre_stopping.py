"""An index of the leases that are to be stopped, by who holds them: what the queue asks again and again. And what is
left of logs that were deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.Uuid().with_variant(sa.LargeBinary(16), "sqlite")


def upgrade() -> None:
    op.create_index(
        "queue_entries_stopping_index",
        "queue_entries",
        ["tenant_id", "holder"],
        postgresql_where=sa.text("phase = 'stopping'"),
        sqlite_where=sa.text("phase = 'stopping'"),
    )
    op.create_table(
        "deleted_logs",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("first_position", sa.BigInteger(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "first_position >= 1 AND last_position >= first_position", name="deleted_logs_positions_check"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", name="deleted_logs_pk"),
    )
