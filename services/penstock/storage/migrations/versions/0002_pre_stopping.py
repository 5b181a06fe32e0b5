"""An index of the leases that are to be stopped, by who holds them: what the queue asks again and again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index(
        "queue_entries_stopping_index",
        "queue_entries",
        ["tenant_id", "holder"],
        postgresql_where=sa.text("phase = 'stopping'"),
        sqlite_where=sa.text("phase = 'stopping'"),
    )
