"""The tables. Times are milliseconds since the epoch, bodies are messages of `ramify.v1` or Arrow IPC streams."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from ramify.scheduler.slots import SLOTS as SLOTS

metadata = MetaData()

# SQLite counts rows up by itself only in a column of its type INTEGER.
Serial = BigInteger().with_variant(Integer(), "sqlite")

# Revisions of up to eight models. SQLite bounds no text, and can't alter a column: there it is as it was.
Pins = String(128).with_variant(String(1024), "postgresql")

# Whoever comes without a key, where none is asked for, is this tenant.
DEFAULT_TENANT = "default"

TenantName = String(64)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Serial, primary_key=True),  # order of creation
    Column("job_id", String(32), nullable=False, unique=True),
    Column("tenant", TenantName, nullable=False, default=DEFAULT_TENANT, server_default=DEFAULT_TENANT),
    Column("priority", Integer, nullable=False, default=0, server_default="0"),  # among its tenant's: the higher one goes first
    # Unique within a tenant: it stands after the tenant's name, see `tenants.scoped`. SQLite bounds no text: see `Pins`.
    Column("request_id", String(128).with_variant(String(256), "postgresql"), nullable=False, unique=True),
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
    Column("retries", BigInteger, nullable=False, default=0, server_default="0"),  # steps that were lost and asked for again
    Column("takeovers", BigInteger, nullable=False, default=0, server_default="0"),  # of slots, from shards that had ended
    Column("restarts", BigInteger, nullable=False, default=0, server_default="0"),  # trees that have lost steps to damage
    Column("cursor", BigInteger, nullable=False, default=0),  # of the job's last event
    Column("segment_floor", BigInteger, nullable=False, default=0),  # no segment up to this one holds a step of the job
    Column("pin_generator", Pins, nullable=False, default="", server_default=""),  # revisions; empty: none yet
    Column("pin_verifier", Pins, nullable=False, default="", server_default=""),
    Column("pin_checker", String(128), nullable=False, default="", server_default=""),
    # Of a cancelled job: the steps of its trees without a result are archived. A job that is done has none.
    Column("settled", Boolean, nullable=False, default=False, server_default=false()),
    Column("uploader", String(32), nullable=False),  # the call that brought the latest problems: it alone may undo the upload
    Column("touched_ms", BigInteger, nullable=False),  # latest sign of life of the upload
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Index("jobs_by_state", "state", "number"),
    Index("jobs_by_tenant", "tenant", "state", "number"),
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
    Column("archive", BigInteger),  # or in this archive, once they have been moved
    Index("results_to_archive", "job", "index", sqlite_where=text("archive IS NULL"), postgresql_where=text("archive IS NULL")),
)

# Ids rise for ever: of two commits of one slot the later one has the larger id.
segments = Table(
    "segments",
    metadata,
    Column("segment_id", Serial, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("nodes", LargeBinary, nullable=False),  # Arrow IPC, zstd: NodeRows
    Column("scores", LargeBinary, nullable=False),  # Arrow IPC, zstd: ScoreRows
    Column("checksum", BigInteger),  # CRC-32 of nodes and then scores; NULL: of a version that made none
    Column("trees", LargeBinary),  # ids of the trees that it holds something of, sorted: u64, little-endian; NULL: likewise
    Column("trees_checksum", BigInteger),  # CRC-32 of them
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("owner", "sequence", name="segments_once"),
    sqlite_autoincrement=True,
)

# Copies of the open trees of a slot as they were when the commit of that segment was durable; of each slot the newest two.
snapshots = Table(
    "snapshots",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("segment_id", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),  # see snapshots.py
    Column("checksum", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

# Steps of trees that have ended, so that segments need not be kept for them.
archives = Table(
    "archives",
    metadata,
    Column("archive_id", Serial, primary_key=True),
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), nullable=False, index=True),
    Column("body", LargeBinary, nullable=False),  # Arrow IPC, zstd: NodeRows
    Column("checksum", BigInteger, nullable=False),
    Column("damage", Text, nullable=False),  # JSON: by tree id, what was lost before the tree was archived
)

# Slots in which a cancelled job's trees without a result are archived.
leftovers = Table(
    "leftovers",
    metadata,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("archive", BigInteger),  # NULL: there are no steps
)

# Steps that don't count: those of a tree in some segments, of which one was damaged when the tree was recovered.
voids = Table(
    "voids",
    metadata,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("index", BigInteger, primary_key=True),
    Column("first", BigInteger, primary_key=True, autoincrement=False),  # segment
    Column("last", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

# Damaged segments that a slot's recovery has found and dealt with, by `voids`.
damages = Table(
    "damages",
    metadata,
    Column("segment_id", BigInteger, primary_key=True, autoincrement=False),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    Column("found_ms", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job", ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("cursor", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # JobEvent
)

# One row for each slot, always.
slots = Table(
    "slots",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False, default=0),  # rises with every claim
    Column("owner", String(64), nullable=False, default=""),  # empty: free
    Column("expires_ms", BigInteger, nullable=False, default=0, server_default="0"),  # when the lease ends
    Column("load", BigInteger, nullable=False, default=0, server_default="0"),  # live chains, as its owner has told last
    Column("floor", BigInteger, nullable=False, default=0, server_default="0"),  # it needs no segment below this one
    Column(
        "former", String(64), nullable=False, default="", server_default=""
    ),  # who has released it; empty: nobody, or it is not free
)

shards = Table(
    "shards",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("started_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),  # it is taken for alive until then
    Column("draining", Boolean, nullable=False),
    Column("waits", Text, nullable=False),  # JSON: a list of leases.Wait
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

# Who shares the system. One that has no row has the defaults: weight 1, and no bounds.
tenants = Table(
    "tenants",
    metadata,
    Column("name", TenantName, primary_key=True),
    Column("weight", Float, nullable=False, default=1.0),  # its share as against the others that want something
    Column("jobs_max", BigInteger),  # that are open at once; NULL: any number, here and below
    Column("live_chains_max", BigInteger),
    Column("tokens_per_day_max", BigInteger),  # days are UTC
    Column("created_ms", BigInteger, nullable=False),
)

# API keys. The secret part is kept as its SHA-256 only.
keys = Table(
    "keys",
    metadata,
    Column("key_id", String(16), primary_key=True),  # the public part
    Column("tenant", TenantName, nullable=False, index=True),
    Column("role", String(16), nullable=False),  # read, submit or operate
    Column("name", String(128), nullable=False),  # for people
    Column("digest", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),  # NULL: never
    Column("revoked_ms", BigInteger),  # NULL: it is good
)

# What tenants have spent, by days since the epoch (UTC). Each shard writes rows of its own, so that none waits for another.
usage = Table(
    "usage",
    metadata,
    Column("tenant", TenantName, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("shard", String(64), primary_key=True),
    Column("steps", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

# Who has done what.
audit = Table(
    "audit",
    metadata,
    Column("number", Serial, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("tenant", TenantName, nullable=False),  # empty: nobody who is known
    Column("key_id", String(64), nullable=False),  # or another name of who it was, e.g. the operator's at the store
    Column("peer", String(128), nullable=False),  # where the call came from
    Column("action", String(64), nullable=False),  # e.g. CancelJob, or keys.revoke
    Column("subject", String(128), nullable=False),  # e.g. a job's id
    Column("outcome", String(32), nullable=False),  # OK, or the status that it was refused with
    Column("detail", Text, nullable=False),
    Index("audit_by_tenant", "tenant", "number"),
)

# One row: the oldest revision of these tables whose code can still work with them.
compatibility = Table("compatibility", metadata, Column("readable_from", String(32), primary_key=True))
