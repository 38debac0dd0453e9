"""Room for the revisions of several generators."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen the pin of a job's generators. SQLite bounds no text."""
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("jobs", "pin_generator", type_=sa.String(1024), existing_type=sa.String(128), existing_nullable=False)
