"""What speculation has spent in vain."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Count wasted tokens of each job."""
    op.add_column("jobs", sa.Column("wasted_tokens", sa.BigInteger(), nullable=False, server_default="0"))
