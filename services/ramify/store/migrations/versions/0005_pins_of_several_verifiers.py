"""Room for the revisions of several verifiers."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen the pin of a job's verifiers. SQLite bounds no text."""
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("jobs", "pin_verifier", type_=sa.String(1024), existing_type=sa.String(128), existing_nullable=False)
