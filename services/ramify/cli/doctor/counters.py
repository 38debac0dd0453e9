"""A check of counters: those of each job must be what the store holds of problems, results and steps. It reads everything."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.cli.doctor.findings import Finding, Level, listed
from ramify.cli.doctor.subject import Subject
from ramify.cli.output import counted
from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import mix64, tree_ids
from ramify.store import segments as codec
from ramify.store.errors import Damaged
from ramify.store.schema import archives, jobs, problems, results, segments
from ramify.v1 import job_pb2

STEPS_MAX = 50_000_000  # that are counted: the names of all of them are held
PROBLEMS_MAX = 20_000_000  # likewise
ROWS_A_READ = 16
RESULTS_A_READ = 10_000


async def counters(subject: Subject) -> Finding:
    """Whether the counters of jobs are what the store holds of problems, results and steps."""
    async with subject.database.read() as connection:
        rows = (await connection.execute(select(jobs).order_by(jobs.c.number))).all()
    lines = list[str]()
    for row in rows:
        # Each job on its own: a view that is held for long keeps the database from cleaning up.
        async with subject.database.read() as connection:
            now = (await connection.execute(select(jobs).where(jobs.c.number == row.number))).one_or_none()
            lines += [f"job {row.job_id}: {line}" for line in (await _wrong_results(connection, now) if now is not None else [])]
    skipped = ""
    if sum(row.steps for row in rows) > STEPS_MAX or sum(row.problems_total for row in rows) > PROBLEMS_MAX:
        skipped = "; there are too many steps or problems to count steps"
    else:
        lines += await _wrong_steps(subject, rows)
    if not lines:
        return Finding("counters", Level.OK, f"those of {counted(len(rows), 'job')} agree with what is stored{skipped}")
    return Finding(
        "counters",
        Level.BAD,
        f"counters of jobs disagree with what is stored{skipped}",
        listed(lines),
        why="progress, budgets and the end of a job go by the counters",
        remedy="please report it with these lines; submit a job that matters anew",
    )


async def _wrong_results(connection: AsyncConnection, job: Any) -> list[str]:
    """What counters of problems disagree, in one view."""
    found = Counter[str]()
    found["problems_total"] = int(
        await connection.scalar(select(func.count()).select_from(problems).where(problems.c.job == job.number)) or 0
    )
    after = -1
    while True:
        query = select(results.c.index, results.c.body).where(results.c.job == job.number, results.c.index > after)
        page = (await connection.execute(query.order_by(results.c.index).limit(RESULTS_A_READ))).all()
        bodies = [job_pb2.Result.FromString(row.body) for row in page]
        found["problems_done"] += len(bodies)
        found["problems_solved"] += sum(body.verdict == job_pb2.VERDICT_CORRECT for body in bodies)
        found["problems_failed"] += sum(body.outcome == job_pb2.OUTCOME_FAILED for body in bodies)
        found["wasted_tokens"] += sum(body.wasted_tokens for body in bodies)
        if len(page) < RESULTS_A_READ:
            break
        after = page[-1][0]
    lines = [
        f"{name} is {getattr(job, name):,}, and {count:,} are stored"
        for name, count in found.items()
        if getattr(job, name) != count
    ]
    done = job.state == job_pb2.JOB_STATE_DONE
    if done and found["problems_done"] != job.problems_total:
        lines.append(f"it is done, with {found['problems_done']:,} results for {job.problems_total:,} problems")
    return lines


class _Steps:
    """Steps of all jobs, as they are read."""

    def __init__(self, rows: Sequence[Any]) -> None:
        ids = [tree_ids(row.job_id, np.arange(row.problems_total)) for row in rows]
        trees = np.concatenate([np.empty(0, np.uint64), *ids])
        order = np.argsort(trees)
        self._trees = trees[order]
        self._job = np.repeat(np.arange(len(rows)), [len(part) for part in ids])[order]
        self._names: list[NDArray[np.uint64]] = []
        self._jobs: list[NDArray[np.int64]] = []
        self._tokens: list[NDArray[np.int32]] = []
        self.incomplete = False  # some could not be read

    def add(self, nodes: NodeRows) -> None:
        """Takes R steps; those that were taken before don't count again."""
        if not len(self._trees) or not len(nodes.tree_id):
            return
        at = np.minimum(np.searchsorted(self._trees, nodes.tree_id), len(self._trees) - 1)
        known = self._trees[at] == nodes.tree_id  # not those of jobs that are deleted
        self._names.append(mix64(nodes.tree_id, nodes.node_id)[known])
        self._jobs.append(self._job[at][known])
        self._tokens.append(nodes.token_count[known])

    def totals(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`[J]` steps and `[J]` tokens of each of `count` jobs, every step counted once."""
        names = np.concatenate([np.empty(0, np.uint64), *self._names])
        _, first = np.unique(names, return_index=True)
        job = np.concatenate([np.empty(0, np.int64), *self._jobs])[first]
        tokens = np.concatenate([np.empty(0, np.int32), *self._tokens])[first]
        sums = np.bincount(job, tokens, count).astype(np.int64)
        return np.bincount(job, minlength=count).astype(np.int64), sums


async def _wrong_steps(subject: Subject, rows: Sequence[Any]) -> list[str]:
    """Which jobs' counters of steps and tokens disagree; of those that go on meanwhile nothing can be told."""
    steps = await asyncio.to_thread(_Steps, rows)
    await _read_all(subject, segments.c.segment_id, (segments.c.nodes, segments.c.scores, segments.c.checksum), steps)
    await _read_all(subject, archives.c.archive_id, (archives.c.body, archives.c.checksum), steps)
    found, tokens = await asyncio.to_thread(steps.totals, len(rows))
    async with subject.database.read() as connection:
        now = {row.number: row.steps for row in (await connection.execute(select(jobs.c.number, jobs.c.steps))).all()}
    lines = []
    for row, step_count, token_count in zip(rows, found.tolist(), tokens.tolist(), strict=True):
        if now.get(row.number) != row.steps or (row.steps, row.tokens) == (step_count, token_count):
            continue
        lost = steps.incomplete or row.restarts > 0
        if lost and step_count <= row.steps and token_count <= row.tokens:
            continue  # what was lost had been paid for
        lines.append(
            f"job {row.job_id}: it counts {row.steps:,} steps with {row.tokens:,} tokens, and {step_count:,} with {token_count:,}"
            " are stored"
        )
    return lines


async def _read_all(subject: Subject, number: Any, columns: tuple[Any, ...], steps: _Steps) -> None:
    after = -1
    while True:
        query = select(number, *columns).where(number > after).order_by(number).limit(ROWS_A_READ)
        async with subject.database.read() as connection:
            page = (await connection.execute(query)).all()
        await asyncio.to_thread(_add_all, page, steps)
        if len(page) < ROWS_A_READ:
            return
        after = page[-1][0]


def _add_all(page: Sequence[Any], steps: _Steps) -> None:
    for _, nodes, *others, known in page:
        try:
            codec.verify(known, nodes, *others)
            steps.add(codec.decode([(codec.read(nodes, codec.PLAIN), codec.NO_SCORES)]))
        except (Damaged, pa.ArrowException, ValueError, KeyError):
            steps.incomplete = True  # which the checks of segments and archives tell
