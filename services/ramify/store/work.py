"""Work as a shard knows it: slots to claim, problems that wait, commits, and what was committed before."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from sqlalchemy import and_, case, select, update

from ramify.scheduler.commands import Commit
from ramify.store import archive, commits, leases, recovery, running, tenants
from ramify.store.archive import Swept
from ramify.store.clock import Clock, db_now_ms
from ramify.store.database import Database, to_its_end
from ramify.store.errors import Fenced
from ramify.store.leases import Beat, Claim, Report, Wait
from ramify.store.ledger import Ledger
from ramify.store.recovery import Recovered, Restarted
from ramify.store.running import OpenJob, Pins
from ramify.store.schema import jobs, problems, results
from ramify.store.tenants import Standing

__all__ = ["Beat", "Claim", "OpenJob", "Pins", "Recovered", "Report", "Restarted", "Swept", "Wait", "WaitingProblem", "Work"]

NONE: Mapping[str, OpenJob] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class WaitingProblem:
    """A problem without a result."""

    index: int
    prompt: str
    reference: str


class Work:
    """See the module. Every method is one or more transactions that run to their end, though their caller be cancelled.

    Any of them may raise `StoreOutage` (and `SQLAlchemyError`, which it is): the same call may then be made again. For one claim
    one object is to be used, by one event loop: it remembers which trees of the claim's slots are open.
    """

    def __init__(self, database: Database, clock: Clock = db_now_ms) -> None:
        """`clock`: the time on which leases are made and judged, in milliseconds; for tests."""
        self.database = database
        self._clock = clock
        self._ledgers: dict[str, Ledger] = {}  # by owner

    def _ledger(self, claim: Claim) -> Ledger:
        if claim.owner not in self._ledgers:
            shard = leases.shard_of(claim.owner)  # whose earlier owners have ended
            self._ledgers = {owner: known for owner, known in self._ledgers.items() if leases.shard_of(owner) != shard}
            self._ledgers[claim.owner] = Ledger()
        return self._ledgers[claim.owner]

    # --- leases -----------------------------------------------------------------------------------------------------

    @to_its_end
    async def beat(self, owner: str, ttl_ms: int, report: Report) -> Beat:
        """Say that a shard is alive, and prolong the lease of every slot that it holds.

        A lease that has ended, but whose slot nobody else has claimed, goes on. Shards that nobody has heard of for ten `ttl_ms`
        are forgotten. A wait that begins or ends is told in its job's history.

        Args:
            owner: name of the shard with its incarnation, up to 64 characters.
            ttl_ms: the shard is alive, and holds its slots, for so long from now on.
            report: what it tells.
        """
        async with self.database.write() as connection:
            return await leases.beat(connection, self._clock, owner, ttl_ms, report)

    @to_its_end
    async def claim(self, owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        """Take slots that are free, or whose lease has ended, or that an owner of the same shard's name holds.

        Whoever had them can't write to them any more. Jobs that run are told where slots were taken over, or moved.

        Args:
            owner: see `beat`.
            wanted: slots.
            ttl_ms: length of the lease.

        Returns:
            The claim on those of `wanted` that could be taken: fewer, or none, if others hold them or are just at them.
        """
        async with self.database.write() as connection:
            return await leases.claim(connection, self._clock, owner, wanted, ttl_ms)

    @to_its_end
    async def release(self, claim: Claim, slots: Sequence[int]) -> None:
        """Give up slots, so that anybody may have them at once; of those that are the claim's no more nothing changes."""
        async with self.database.write() as connection:
            await leases.release(connection, claim, slots)

    @to_its_end
    async def leave(self, owner: str) -> None:
        """Take a shard off the list of those that are alive; what it holds stays its own to the end of the lease."""
        async with self.database.write() as connection:
            await leases.leave(connection, owner)

    # --- problems ---------------------------------------------------------------------------------------------------

    @to_its_end
    async def open_jobs(self, known: Mapping[str, OpenJob] = NONE) -> list[OpenJob]:
        """Jobs that run, by priority, and of one priority the oldest first: those of `known`, and each tenant's first others.

        What is known is not read again. Of the others come no more than are begun in a fraction of a second.

        Args:
            known: jobs by id, of earlier calls.
        """
        async with self.database.read() as connection:
            return await running.open_jobs(connection, known)

    @to_its_end
    async def named(self, job_ids: Collection[str]) -> list[OpenJob]:
        """Those of some jobs that run, in the order of `open_jobs`."""
        async with self.database.read() as connection:
            return await running.named(connection, job_ids)

    @to_its_end
    async def standings(self) -> dict[str, Standing]:
        """See `Tenants.standings`."""
        async with self.database.read() as connection:
            return await tenants.standings(connection, await self._clock(connection))

    @to_its_end
    async def waiting(self, job: OpenJob, slots: Sequence[int], after: int, limit: int) -> list[WaitingProblem]:
        """Up to `limit` problems of some slots without a result, by index above `after`."""
        done = and_(results.c.job == problems.c.job, results.c.index == problems.c.index)
        query = (
            select(problems.c.index, problems.c.prompt, problems.c.reference)
            .select_from(problems.outerjoin(results, done))
            .where(problems.c.job == job.number, problems.c.index > after, problems.c.slot.in_(slots))
            .where(results.c.job.is_(None))
            .order_by(problems.c.index)
            .limit(limit)
        )
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [WaitingProblem(*row) for row in rows]

    @to_its_end
    async def pin(self, claim: Claim, job_id: str, generator: str, verifier: str, checker: str) -> Pins:
        """Pin a job to revisions of its models; the first that is given for each model holds.

        Args:
            claim: the writer's right.
            job_id: a job that is not there any more is pinned to what is given.
            generator: revision, of several generators theirs, up to 1,024 characters; empty: not known yet.
            verifier: likewise.
            checker: revision, up to 128 characters; empty: not known yet, or no such model.

        Returns:
            The revisions that hold: those given now, where no other was given before.

        Raises:
            Fenced: a slot of the claim is another's by now; nothing was written.
        """
        async with self.database.write() as connection:
            await leases.check(connection, claim, claim.slots, leases.Hold.SHARED)
            given = {"generator": generator, "verifier": verifier, "checker": checker}
            columns = {role: jobs.c[f"pin_{role}"] for role in given}
            values = {column: case((column == "", given[role]), else_=column) for role, column in columns.items()}
            pinned = update(jobs).where(jobs.c.job_id == job_id).values(values).returning(*columns.values())
            row = (await connection.execute(pinned)).one_or_none()
        return Pins(**given) if row is None else Pins(*row)

    # --- steps ------------------------------------------------------------------------------------------------------

    @to_its_end
    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        """Write a commit; durable on return. Writing it again (same owner, same sequence) changes nothing.

        Args:
            claim: the writer's right. Only the slots that the commit touches are checked (those of its steps, scores, results and
                snapshots, and what it releases); of one that touches none, all.
            commit: what to write. Its `released` slots are free once it is durable.
            first_segment: segment of each open tree's first step, or one before it, by tree id; once the commit is durable,
                trees that are new in it are added.

        Returns:
            The segment's id: larger than that of any commit before it.

        Raises:
            Fenced: slots that the commit touches are another's by now; nothing was written.
        """
        ledger = self._ledger(claim)
        trees = np.unique(commit.nodes.tree_id).tolist()
        ledger.begin(trees)
        try:
            first = ledger.first_segments(first_segment)
            segment = await commits.write(self.database, self._clock, claim, commit, first)
        except Fenced:
            self._ledgers.pop(claim.owner, None)
            raise
        ledger.done(segment, trees, [result.tree_id for delta in commit.jobs for result in delta.results], commit.released)
        for tree_id in trees:
            first_segment.setdefault(tree_id, segment)
        return segment

    @to_its_end
    async def recover(self, claim: Claim) -> Recovered:
        """What was committed of the claim's open trees; to be called once for each claim, before its first commit.

        Reads each slot's newest good snapshot and the segments after it. What is damaged costs only the trees of which it
        holds something: they lose their steps from there on, which their jobs' histories tell, and `Recovered.restarted`.

        Raises:
            Fenced: a slot of the claim is another's by now.
        """
        found = await recovery.recover(self.database, self._clock, claim)
        self._ledger(claim).recovered(claim.epochs, found.first_segment)
        return found

    # --- what has ended ---------------------------------------------------------------------------------------------

    @to_its_end
    async def archive(self, claim: Claim, limit: int) -> int:
        """Move steps of trees that have ended out of the segments, and free the segments that the claim's slots need no more.

        Slots that this object has not recovered are left alone.

        Args:
            claim: the writer's right.
            limit: trees at most; a few thousand is a good number, for a call reads all segments that they spread over.

        Returns:
            Trees that were moved; 0: there are no more for now.

        Raises:
            Fenced: a slot of the claim is another's by now; nothing was written.
        """
        return await archive.archive(self.database, self._clock, claim, self._ledger(claim), limit)

    @to_its_end
    async def sweep(self, retention_ms: int | None) -> Swept:
        """Delete what nobody needs any more: segments and snapshots of trees that are archived; any shard may, now and then.

        Args:
            retention_ms: jobs that ended longer ago are deleted with all that is theirs; None: none is.
        """
        return await archive.sweep(self.database, self._clock, retention_ms)
