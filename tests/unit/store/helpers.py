"""Short ways to say what the store's tests need."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import func, select

from ramify.scheduler.commands import Commit, JobDelta, NodeRows, ScoreRows, Snapshot, TreeResult
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_ROW
from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.forest.parts import NODE_COLUMNS, TREE_COLUMNS, Part
from ramify.scheduler.slots import slot_of
from ramify.store.database import Database
from ramify.store.schema import SLOTS, metadata
from ramify.store.segments import NO_STEPS
from ramify.store.submissions import Chunk, NewProblem
from ramify.store.uploads import Uploads
from ramify.store.work import Claim, OpenJob, Work
from ramify.v1 import job_pb2

SPEC = job_pb2.JobSpec(name="asked")
FILLED = job_pb2.JobSpec(name="asked", generator="tiny24", search=job_pb2.Search(seed=7))
NO_SCORES = ScoreRows(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.int32))
TTL_MS = 15_000
EMPTY = Chunk(0, [], False)
LAST = Chunk(0, [], True)
_incarnations = itertools.count(1)


def chunk(offset: int, *texts: str, last: bool = False) -> Chunk:
    """Problems without ids."""
    return Chunk(offset, [problem(text) for text in texts], last)


def problem(text: str, name: str = "") -> NewProblem:
    return NewProblem(job_pb2.Problem(id=name, text=text, reference=f"answer to {text}"), f"prompt of {text}")


async def running_job(database: Database, problems: int = 2, request_id: str = "request") -> job_pb2.Job:
    texts = [f"p{index}" for index in range(problems)]
    return await Uploads(database).create(request_id, SPEC, FILLED, chunk(0, *texts, last=True), "call")


def incarnation(shard: str = "shard:0") -> str:
    """The name of an owner that there was none of before."""
    return f"{shard}@{next(_incarnations)}"


async def all_slots(work: Work, shard: str = "shard:0") -> Claim:
    """A claim on every slot by a new incarnation of a shard."""
    return await work.claim(incarnation(shard), range(SLOTS), TTL_MS)


async def open_job(work: Work) -> OpenJob:
    (job,) = await work.open_jobs()
    return job


def tree_id(job: job_pb2.Job, index: int) -> int:
    return int(tree_ids(job.job_id, np.array([index], np.int64))[0])


def index_in_slot(job: job_pb2.Job, slot: int) -> int:
    """The first problem of a job whose tree is in a slot; among 1,000 there is one for sure."""
    indexes = np.arange(job.progress.problems_total)
    return int(np.flatnonzero(slot_of(tree_ids(job.job_id, indexes)) == slot)[0])


@dataclass(frozen=True)
class Step:
    """A step of a tree; the root is node 1."""

    tree: int
    node: int
    parent: int = 1
    child: int = 0
    depth: int = 1
    text: bytes = b"step"
    score: float = 0.5
    finish: int = Finish.STEP
    turn: int = 1


def rows(*steps: Step) -> NodeRows:
    """Steps as columns; each has its node id as its only token."""
    if not steps:
        return NO_STEPS

    def column(name: str, dtype: Any) -> Any:
        return np.array([getattr(step, name) for step in steps], dtype)

    return NodeRows(
        tree_id=column("tree", np.uint64),
        node_id=column("node", np.uint64),
        parent_id=column("parent", np.uint64),
        child_index=column("child", np.int32),
        depth=column("depth", np.int16),
        tokens=column("node", np.int32),
        token_count=np.ones(len(steps), np.int32),
        text=np.frombuffer(b"".join(step.text for step in steps), np.uint8),
        text_count=np.array([len(step.text) for step in steps], np.int32),
        logprob=np.full(len(steps), -0.25, np.float32),
        score=column("score", np.float32),
        finish=column("finish", np.uint8),
        turn=column("turn", np.int32),
    )


def scores(*found: tuple[int, int, float], turn: int = 2) -> ScoreRows:
    """Scores of (tree, node)."""
    tree, node, score = zip(*found, strict=True)
    turns = np.full(len(found), turn, np.int32)
    return ScoreRows(np.array(tree, np.uint64), np.array(node, np.uint64), np.array(score, np.float32), turns)


def result(job: job_pb2.Job, index: int, **values: Any) -> TreeResult:
    defaults: dict[str, Any] = {
        "tree_id": tree_id(job, index),
        "problem": index,
        "outcome": job_pb2.OUTCOME_ANSWERED,
        "verdict": job_pb2.VERDICT_CORRECT,
        "steps": ["one", "two"],
        "score": 0.75,
        "answer_node_id": 2,
        "step_count": 2,
        "tokens": 10,
        "wasted_tokens": 0,
        "message": "",
    }
    return TreeResult(**{**defaults, **values})


def delta(job: job_pb2.Job, *results: TreeResult, steps: int = 1, tokens: int = 5, retries: int = 0) -> JobDelta:
    return JobDelta(job.job_id, steps, tokens, list(results), retries)


def commit(sequence: int, *deltas: JobDelta, nodes: NodeRows = NO_STEPS, late: ScoreRows = NO_SCORES, **rest: Any) -> Commit:
    return Commit(sequence, nodes, late, list(deltas), **rest)


def part(job: job_pb2.Job, *indexes: int, live: int = 3) -> Part:
    """Trees of a job with so many live nodes each, the root (node 1) and children of it; each node's only token is its id."""
    count = len(indexes)
    trees: dict[str, Any] = {name: np.zeros(count, dtype) for name, dtype in TREE_COLUMNS.items()}
    trees["tree_id"] = tree_ids(job.job_id, np.array(indexes, np.int64))
    trees["problem"] = np.array(indexes, np.int64)
    trees["root"] = np.arange(count, dtype=np.int32) * live
    trees["best"] = np.full(count, NO_ROW, np.int32)
    nodes: dict[str, Any] = {name: np.zeros(count * live, dtype) for name, dtype in NODE_COLUMNS.items()}
    which = np.tile(np.arange(live), count)
    nodes["node_id"] = (1 + which).astype(np.uint64)
    nodes["tree"] = np.repeat(np.arange(count, dtype=np.int32), live)
    nodes["parent"] = np.where(which == 0, NO_ROW, trees["root"][nodes["tree"]]).astype(np.int32)
    nodes["score"] = np.where(which == 0, np.nan, 0.5).astype(np.float32)
    nodes["token_count"], nodes["text_count"] = np.ones(count * live, np.int32), np.full(count * live, 4, np.int32)
    messages = dict.fromkeys(trees["tree_id"][:1].tolist(), "went wrong")
    text = np.frombuffer(b"step" * (count * live), np.uint8)
    return Part(trees, nodes, (1 + which).astype(np.int32), text, messages)


def snapshot(slot: int, parts: Mapping[str, Part] | None = None, steps: NodeRows = NO_STEPS) -> Snapshot:
    return Snapshot(slot, parts or {}, steps)


def without_turn(body: bytes) -> bytes:
    """A stream of steps or scores as it was written before decisions were counted."""
    with pa.ipc.open_stream(body) as reader:
        table = reader.read_all().drop_columns(["turn"])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def node_ids(nodes: NodeRows) -> list[int]:
    return [int(node) for node in nodes.node_id]


def texts(nodes: NodeRows) -> list[bytes]:
    ends = np.cumsum(nodes.text_count)
    return [nodes.text[end - count : end].tobytes() for end, count in zip(ends, nodes.text_count, strict=True)]


async def contents(database: Database, tables: Sequence[str] = ()) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the database, to compare."""
    async with database.read() as connection:
        return {
            table.name: [tuple(row) for row in await connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
            if not tables or table.name in tables
        }


async def count(database: Database, table: str) -> int:
    async with database.read() as connection:
        return int(await connection.scalar(select(func.count()).select_from(metadata.tables[table])) or 0)
