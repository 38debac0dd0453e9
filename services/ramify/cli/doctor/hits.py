"""Which problems some trees are of: a tree's id is a hash, so it is found by making the ids of all problems."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from ramify.cli.doctor.findings import ranges
from ramify.cli.doctor.subject import Subject
from ramify.scheduler.forest.ids import tree_ids
from ramify.store.schema import jobs, results

TRIED_MAX = 20_000_000  # problems, of the newest jobs
INDEXES_SHOWN = 20
INDEXES_A_QUERY = 500


async def hits(subject: Subject, trees: NDArray[np.uint64] | None) -> list[str]:
    """A line for each job that some trees `[T]` belong to, with its problems; None: it is not known which trees.

    Trees that are archived don't count.
    """
    if trees is None:
        return ["its index of trees is damaged as well, so that it may be any of the problems that grew then"]
    async with subject.database.read() as connection:
        columns = (jobs.c.number, jobs.c.job_id, jobs.c.problems_total)
        rows = (await connection.execute(select(*columns).order_by(jobs.c.number.desc()))).all()
    found = await asyncio.to_thread(_indexes, rows, trees)
    lines = [line for row, indexes in found if (line := await _line(subject, row, indexes))]
    strangers = len(trees) - sum(len(indexes) for _, indexes in found)
    return lines + ([f"{strangers:,} trees of jobs that are deleted, or too long ago"] if strangers else [])


def _indexes(rows: Sequence[Any], trees: NDArray[np.uint64]) -> list[tuple[Any, list[int]]]:
    found, tried = [], 0
    for row in rows:
        tried += row.problems_total
        if tried > TRIED_MAX:
            break
        mine = np.flatnonzero(np.isin(tree_ids(row.job_id, np.arange(row.problems_total)), trees)).tolist()
        if mine:
            found.append((row, mine))
    return found


async def _line(subject: Subject, job: Any, indexes: Sequence[int]) -> str:
    done, archived = 0, set[int]()
    async with subject.database.read() as connection:
        for start in range(0, len(indexes), INDEXES_A_QUERY):
            part = results.c.index.in_(indexes[start : start + INDEXES_A_QUERY])
            query = select(results.c.index.label("problem"), results.c.archive).where(results.c.job == job.number, part)
            rows = (await connection.execute(query)).all()
            archived |= {row.problem for row in rows if row.archive is not None}
            done += sum(row.archive is None for row in rows)
    hit = [index for index in indexes if index not in archived]  # what is archived is not read from segments any more
    shown = ranges(hit[:INDEXES_SHOWN]) + (", ..." if len(hit) > INDEXES_SHOWN else "")
    if not hit:
        return ""
    if len(hit) == 1:
        return f"job {job.job_id}: problem {shown}, which {'has a result' if done else 'is open'}"
    return f"job {job.job_id}: problems {shown} ({len(hit):,}; {done:,} of them have a result)"
