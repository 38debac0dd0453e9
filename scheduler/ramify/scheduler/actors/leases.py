"""Keeps a shard's slots: tells the store that it is alive, takes what is its own to take and gives up what is another's.

Every shard computes the same assignment of slots (`slots.assign`); nobody hands them out. What keeps that safe is the epoch that
every commit is checked by; the lease is for others to know when they may take over. So a shard that was paused, or cut off, has
nothing to be careful about but its money: it stops spending when no beat has succeeded for two thirds of a lease.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from ramify.scheduler.actors.meters import Meters
from ramify.scheduler.actors.store_time import StoreTime
from ramify.scheduler.slots import assign
from ramify.store.errors import Fenced
from ramify.store.leases import Beat, Claim, Report, shard_of
from ramify.store.work import Work

log = logging.getLogger(__name__)

BEATS_A_LEASE = 4  # at least
BEAT_S_MAX = 1.0  # a lease that ends, and a shard that comes, is seen within that time
JOIN_S = 0.3  # from the first beat, which says that we are there, to the first claim: those that start at once see each other
MOVE_CHAINS_MAX = 50_000  # live chains that are given up at once; one slot may have more
STALE_SHARE = 2 / 3  # of a lease without a beat, after which nothing more is sampled


class LeaseKeeper:
    """See the module. Its owner asks `claim` for its right to write, and `stale` whether to go on sampling."""

    def __init__(
        self,
        work: Work,
        owner: str,
        lease_ms: int,
        *,
        report: Callable[[], Report],
        gained: Callable[[Claim], None],
        give_up: Callable[[Sequence[int]], None],
        store_time: StoreTime,
        meters: Meters | None = None,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Keep the slots of `owner`.

        Args:
            work: the store.
            owner: the shard's name with its incarnation.
            lease_ms: length of a lease.
            report: what to tell with each beat.
            gained: takes slots that have come; they are `busy` until `settled`.
            give_up: takes slots that others are to have; once nothing of them is left here, `gone` is to be called.
            store_time: is set with each beat.
            meters: counts what is taken over, and beats that fail.
            now_s: the monotonic clock.
            sleep: waits for a number of seconds.
        """
        self.owner = owner
        self.draining = False  # takes no more slots, see `take_no_more`
        self._knows = asyncio.Event()  # that it drains, and what it has
        self._work, self._lease_ms = work, lease_ms
        self._report, self._gained, self._give_up = report, gained, give_up
        self._store_time, self._now_s, self._sleep = store_time, now_s, sleep
        self._meters = meters or Meters()
        self._epochs: dict[int, int] = {}  # of the slots that are ours
        self._former: dict[int, int] = {}  # epochs of those that were
        self._leaving: set[int] = set()  # of ours, those that are being given up
        self._busy: set[int] = set()  # of ours, those that are not settled yet
        self._beats = 0
        self._beat_s = now_s()  # when the last beat that succeeded was begun
        self._failing = False
        self._hurried = asyncio.Event()

    @property
    def claim(self) -> Claim:
        """The right to write, as it is known now."""
        return Claim(self.owner, dict(self._epochs))

    @property
    def slots(self) -> list[int]:
        """Slots that are held, rising."""
        return sorted(self._epochs)

    @property
    def busy(self) -> frozenset[int]:
        """Slots of which not all is here yet."""
        return frozenset(self._busy)

    @property
    def settled_claim(self) -> Claim:
        """The right to write to slots that are neither coming nor going."""
        quiet = self._epochs.keys() - self._busy - self._leaving
        return Claim(self.owner, {slot: self._epochs[slot] for slot in quiet})

    @property
    def stale(self) -> bool:
        """Whether the leases may have ended for all we know: no beat has succeeded for long, or the process stood still."""
        return 1000 * self.silent_s > STALE_SHARE * self._lease_ms

    @property
    def silent_s(self) -> float:
        """How long ago the store was last heard of."""
        return self._now_s() - self._beat_s

    def hurry(self) -> None:
        """Beat now."""
        self._hurried.set()

    async def take_no_more(self) -> None:
        """Claim nothing from now on. Returns when no claim is under way any more: what one brings is ours, and to be given up."""
        self.draining = True
        self.hurry()
        await self._knows.wait()

    def settled(self, slots: Sequence[int]) -> None:
        """All that was committed of some slots is here: they may be given up again."""
        self._busy -= {*slots}

    def leaving(self, slots: Sequence[int]) -> list[int]:
        """Some slots are being given up; those of them that were not already."""
        new = [slot for slot in slots if slot not in self._leaving]
        self._leaving |= {*slots}
        return new

    def gone(self, slots: Sequence[int]) -> None:
        """Slots were given up, and are others' to take."""
        for slot in slots:
            self._former[slot] = self._epochs.pop(slot)
        self._leaving -= {*slots}
        self._busy -= {*slots}

    async def run(self) -> None:
        """Beat until cancelled.

        Raises:
            Fenced: another shard has taken slots over.
        """
        while True:
            try:
                await self.beat()
                if self._failing:
                    log.warning("%s has beaten again", self.owner)
                self._failing = False
            except SQLAlchemyError as error:
                if not self._failing:
                    log.error("%s can't tell the store that it is alive, trying again: %s", self.owner, error)
                self._failing = True
                self._meters.count("store_failures", 1)
            await self._rest()

    async def beat(self) -> None:
        """Beat once, and take and give up what is to be.

        Raises:
            Fenced: see `run`.
            SQLAlchemyError: the store does not answer.
        """
        began_s, known = self._now_s(), dict(self._epochs)
        beat = await self._work.beat(self.owner, self._lease_ms, self._report())
        self._store_time.set(beat.now_ms, began_s)
        # What was given up meanwhile may be gone without our having heard of it; what else is gone was taken from us.
        lost = [
            slot for slot, epoch in known.items() if beat.held.get(slot) != epoch and slot in self._epochs.keys() - self._leaving
        ]
        if lost:
            raise Fenced(self.owner, lost)
        self._beat_s = began_s
        self._beats += 1
        # A claim of which we have not heard the answer; or one that was given up while the beat was under way.
        self._take(
            {slot: epoch for slot, epoch in beat.held.items() if slot not in self._epochs and self._former.get(slot) != epoch}
        )
        if self.draining:
            self._knows.set()
            return
        # To us every incarnation of our shard is us: which is the newest the store tells by a clock that may have been set back.
        views = [replace(view, owner=self._seen(view.owner)) for view in beat.slots]
        holder = assign(views, sorted({self._seen(owner) for owner in beat.shards}))
        await self._claim(beat, holder)
        self._offer(beat, holder)

    def _seen(self, owner: str) -> str:
        return self.owner if shard_of(owner) == shard_of(self.owner) else owner

    async def _claim(self, beat: Beat, holder: Mapping[int, str]) -> None:
        """Take what is nobody's and to be ours, and what our predecessor had."""
        others = [view for view in beat.slots if view.slot not in self._epochs]
        if self._beats == 1:  # who was just started is the newest, whatever the store says
            wanted = [view.slot for view in others if self._seen(view.owner) == self.owner]
        else:
            wanted = [view.slot for view in others if view.owner == self.owner]
            wanted += [view.slot for view in others if not view.owner and holder.get(view.slot) == self.owner]
        if wanted:
            claim = await self._work.claim(self.owner, sorted(wanted), self._lease_ms)
            self._meters.count("takeovers", claim.taken_over)
            self._take(claim.epochs)

    def _take(self, epochs: Mapping[int, int]) -> None:
        if epochs:
            self._epochs |= epochs
            self._busy |= epochs.keys()
            self._gained(Claim(self.owner, dict(epochs)))

    def _offer(self, beat: Beat, holder: Mapping[int, str]) -> None:
        """Give up what is to be another's: the lightest first, and not too much at once."""
        others = [view for view in beat.slots if view.slot in self._epochs and holder.get(view.slot, self.owner) != self.owner]
        chains, found = 0, list[int]()
        for view in sorted(others, key=lambda view: (view.load, view.slot)):
            if view.slot in self._leaving | self._busy:
                continue
            chains += view.load
            if found and chains > MOVE_CHAINS_MAX:
                break
            found.append(view.slot)
        if found:
            log.info("%s gives up slots %s", self.owner, ", ".join(map(str, found)))
            self.leaving(found)
            self._give_up(found)

    async def _rest(self) -> None:
        seconds = JOIN_S if self._beats == 1 else min(self._lease_ms / 1000 / BEATS_A_LEASE, BEAT_S_MAX)
        naps = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self._hurried.wait())]
        try:
            await asyncio.wait(naps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for nap in naps:
                nap.cancel()
            await asyncio.gather(*naps, return_exceptions=True)
        self._hurried.clear()
