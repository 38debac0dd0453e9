"""Tenants, their keys and what they have spent, the audit log, and which older code can work with these tables."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

READABLE_FROM = "0005"  # whose code leaves the new columns at their defaults


def upgrade() -> None:
    """All jobs that there are belong to the default tenant. Nothing is written anew, so jobs go on meanwhile."""
    op.add_column("jobs", sa.Column("tenant", sa.String(64), nullable=False, server_default="default"))
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "state", "number"])
    if op.get_bind().dialect.name != "sqlite":  # which bounds no text
        op.alter_column("jobs", "request_id", type_=sa.String(256), existing_type=sa.String(128), existing_nullable=False)
    _create_tenants()
    _create_audit()
    compatibility = op.create_table("compatibility", sa.Column("readable_from", sa.String(32), primary_key=True))
    op.bulk_insert(compatibility, [{"readable_from": READABLE_FROM}])


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("jobs_max", sa.BigInteger(), nullable=True),
        sa.Column("live_chains_max", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_day_max", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
    )
    op.create_index("ix_keys_tenant", "keys", ["tenant"])
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("day", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("shard", sa.String(64), primary_key=True),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("peer", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
    )
    op.create_index("audit_by_tenant", "audit", ["tenant", "number"])
