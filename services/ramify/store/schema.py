"""The tables. Times are milliseconds since the epoch, bodies are messages of `ramify.v1` or Arrow IPC streams."""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SLOTS = 64  # logical shards: a tree belongs to slot tree_id % SLOTS for ever

metadata = MetaData()

# SQLite counts rows up by itself only in a column of its type INTEGER.
Serial = BigInteger().with_variant(Integer(), "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("number", Serial, primary_key=True),  # order of creation
    Column("job_id", String(32), nullable=False, unique=True),
    Column("request_id", String(128), nullable=False, unique=True),
    Column("spec", LargeBinary, nullable=False),  # JobSpec with every default filled in
    Column("spec_asked", LargeBinary, nullable=False),  # JobSpec as it came: what a repeated request is held against
    Column("state", Integer, nullable=False),  # JobState
    Column("problems_total", BigInteger, nullable=False, default=0),
    Column("problems_done", BigInteger, nullable=False, default=0),
    Column("problems_solved", BigInteger, nullable=False, default=0),
    Column("problems_failed", BigInteger, nullable=False, default=0),
    Column("steps", BigInteger, nullable=False, default=0),
    Column("tokens", BigInteger, nullable=False, default=0),
    Column("wasted_tokens", BigInteger, nullable=False, default=0, server_default="0"),  # of those, spent on speculation in vain
    Column("cursor", BigInteger, nullable=False, default=0),  # of the job's last event
    Column("segment_floor", BigInteger, nullable=False, default=0),  # no segment up to this one holds a step of the job
    Column("uploader", String(32), nullable=False),  # the call that brought the latest problems: it alone may undo the upload
    Column("touched_ms", BigInteger, nullable=False),  # latest sign of life of the upload
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Index("jobs_by_state", "state", "number"),
)

problems = Table(
    "problems",
    metadata,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("index", BigInteger, primary_key=True),
    Column("slot", Integer, nullable=False),
    Column("problem_id", Text, nullable=False),  # empty: none
    Column("text", Text, nullable=False),  # as submitted
    Column("prompt", Text, nullable=False),  # as the models see it
    Column("reference", Text, nullable=False),
    Index(
        "problems_by_id",
        "job",
        "problem_id",
        unique=True,
        sqlite_where=text("problem_id != ''"),
        postgresql_where=text("problem_id != ''"),
    ),
)

results = Table(
    "results",
    metadata,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("index", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # Result without its problem
    Column("segment_first", BigInteger, nullable=False),  # the tree's steps lie in these segments
    Column("segment_last", BigInteger, nullable=False),
)

segments = Table(
    "segments",
    metadata,
    Column("segment_id", Serial, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("nodes", LargeBinary, nullable=False),  # Arrow IPC, zstd: NodeRows
    Column("scores", LargeBinary, nullable=False),  # Arrow IPC, zstd: ScoreRows
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("owner", "epoch", "sequence", name="segments_once"),
)

events = Table(
    "events",
    metadata,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("cursor", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # JobEvent
)

slots = Table(
    "slots",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),  # rises with every claim
    Column("owner", String(64), nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("role", String(16), primary_key=True),  # generator, verifier or checker
    Column("name", String(128), primary_key=True),
    Column("revision", String(64), nullable=False),
    Column("delimiter", Text, nullable=False),
    Column("problem_format", String(64), nullable=False),
)
