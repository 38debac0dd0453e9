"""Leases, snapshots, archives, checksums."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SLOTS = 64


def upgrade() -> None:
    """Bring the tables up. What was written before stays readable: it has no checksums, and every slot is free to be claimed."""
    _extend_jobs()
    _extend_segments()
    op.add_column("results", sa.Column("archive", sa.BigInteger(), nullable=True))
    where = sa.text("archive IS NULL")
    op.create_index("results_to_archive", "results", ["job", "index"], sqlite_where=where, postgresql_where=where)
    _extend_slots()
    op.create_table(
        "shards",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("waits", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
    _create_snapshots_and_archives()
    _create_voids_and_damages()


def _serial() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _extend_jobs() -> None:
    for counter in ("retries", "takeovers", "restarts"):
        op.add_column("jobs", sa.Column(counter, sa.BigInteger(), nullable=False, server_default="0"))
    for role in ("generator", "verifier", "checker"):
        op.add_column("jobs", sa.Column(f"pin_{role}", sa.String(length=128), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("settled", sa.Boolean(), nullable=False, server_default=sa.false()))


def _extend_segments() -> None:
    # An owner was one name for all of its epochs. Each of its commits was made once in an epoch, so each epoch is an incarnation.
    op.execute("UPDATE segments SET owner = owner || '@epoch-' || CAST(epoch AS VARCHAR(20))")
    # SQLite writes the table anew, and from now on never gives an id twice, though all segments be deleted.
    with op.batch_alter_table("segments", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.drop_constraint("segments_once", type_="unique")
        batch.drop_column("epoch")
        batch.add_column(sa.Column("checksum", sa.BigInteger(), nullable=True))
        batch.add_column(sa.Column("trees", sa.LargeBinary(), nullable=True))
        batch.add_column(sa.Column("trees_checksum", sa.BigInteger(), nullable=True))
        batch.create_unique_constraint("segments_once", ["owner", "sequence"])


def _extend_slots() -> None:
    for number in ("expires_ms", "load", "floor"):
        op.add_column("slots", sa.Column(number, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("slots", sa.Column("former", sa.String(length=64), nullable=False, server_default=""))
    slots = sa.table("slots", sa.column("slot"), sa.column("epoch"), sa.column("owner"))
    known = set(op.get_bind().scalars(sa.select(slots.c.slot)))
    new = [{"slot": slot, "epoch": 0, "owner": ""} for slot in range(SLOTS) if slot not in known]
    op.bulk_insert(slots, new)


def _create_snapshots_and_archives() -> None:
    op.create_table(
        "snapshots",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("segment_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slot", "segment_id"),
    )
    op.create_table(
        "archives",
        sa.Column("archive_id", _serial(), nullable=False),
        sa.Column("job", _serial(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.Column("damage", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("archive_id"),
    )
    op.create_index("ix_archives_job", "archives", ["job"])
    op.create_table(
        "leftovers",
        sa.Column("job", _serial(), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("archive", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "slot"),
    )


def _create_voids_and_damages() -> None:
    op.create_table(
        "voids",
        sa.Column("job", _serial(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "index", "first"),
    )
    op.create_table(
        "damages",
        sa.Column("segment_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("found_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("segment_id", "slot"),
    )
