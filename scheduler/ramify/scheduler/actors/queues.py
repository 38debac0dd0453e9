"""Steps that wait for an engine, and whose turn it is: what an engine can take is shared between tenants."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.allocation import level, whole
from ramify.scheduler.commands import Generate
from ramify.scheduler.journal import cut

PRIORITY_MAX = 2**31 - 1
Weight = Callable[[str], float]
"""A tenant's share as against others'."""


class Queue(deque[Generate]):
    """Commands that wait; knows how many steps they ask for."""

    steps = 0

    def append(self, command: Generate) -> None:
        """Put a command last."""
        self.steps += len(command.hint)
        super().append(command)

    def appendleft(self, command: Generate) -> None:
        """Put a command first."""
        self.steps += len(command.hint)
        super().appendleft(command)

    def popleft(self) -> Generate:
        """Take the first command out."""
        command = super().popleft()
        self.steps -= len(command.hint)
        return command

    def take(self, most: int) -> list[Generate]:
        """Take the first steps out, `most` of them or all."""
        found = list[Generate]()
        while self and most > 0:
            command = self.popleft()
            if len(command.hint) > most:
                self.appendleft(cut(command, most, len(command.hint)))
                command = cut(command, 0, most)
            most -= len(command.hint)
            found.append(command)
        return found

    def drain(self) -> list[Generate]:
        """Take all out."""
        return [self.popleft() for _ in range(len(self))]


class SharedQueue:
    """Commands that wait, of several tenants: a queue for each tenant and priority."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, Queue]] = {}

    def __iter__(self) -> Iterator[Generate]:
        return chain.from_iterable(self.queues)

    def __bool__(self) -> bool:
        return any(self.queues)

    @property
    def queues(self) -> list[Queue]:
        """All of them. What is dropped from one of them is dropped from here."""
        return [queue for mine in self._of.values() for queue in mine.values()]

    @property
    def steps(self) -> int:
        """That wait."""
        return sum(queue.steps for queue in self.queues)

    @property
    def tenants(self) -> list[str]:
        """Whose steps wait."""
        return [tenant for tenant, mine in self._of.items() if any(mine.values())]

    def append(self, command: Generate) -> None:
        """Put a command last of those of its tenant and priority."""
        plan = command.plan
        self._of.setdefault(plan.tenant, {}).setdefault(plan.priority, Queue()).append(command)

    def take(self, most: int, held: Mapping[str, int], weight: Weight) -> list[Generate]:
        """Take out `most` steps or all: so many of each tenant that those who have least for their weight have more.

        Of a tenant's steps those of the highest priority are taken first, then those that came first.

        Args:
            most: steps.
            held: that tenants have under way.
            weight: of tenants.
        """
        for tenant in [tenant for tenant, mine in self._of.items() if not any(mine.values())]:
            del self._of[tenant]
        found = list[Generate]()
        for mine, share in zip(self._of.values(), self._shares(most, held, weight), strict=True):
            for priority in sorted(mine, reverse=True):
                before = mine[priority].steps
                found += mine[priority].take(share)
                share -= before - mine[priority].steps
                if not mine[priority]:
                    del mine[priority]
        return found

    def _shares(self, most: int, held: Mapping[str, int], weight: Weight) -> list[int]:
        """How many steps of each tenant; one of each that has none there, however little its weight is."""
        if len(self._of) < 2:
            return [most] * len(self._of)
        waiting = np.array([sum(queue.steps for queue in mine.values()) for mine in self._of.values()])
        weights, has = np.array([[weight(tenant), held.get(tenant, 0)] for tenant in self._of]).T
        one = (has == 0) & (np.cumsum(has == 0) <= most)
        waiting, most = waiting - one, most - int(one.sum())
        shares = whole(level(waiting.astype(np.float64), weights, most, has + one), waiting, most)
        return [share + first for share, first in zip(shares, one.tolist(), strict=True)]

    def drain(self) -> list[Generate]:
        """Take all out."""
        return [command for queue in self.queues for command in queue.drain()]


class Turns:
    """What tenants have under way on an engine, and how their steps stand in line at its door."""

    def __init__(self) -> None:
        self.held = Counter[str]()  # steps
        self._sent = 0  # steps, ever
        self._last: dict[str, int] = {}  # by tenant: the place of its last step, counted like `_sent`

    def send(self, tenants: Sequence[tuple[str, int]], waiting: Sequence[str], weight: Weight) -> NDArray[np.int32]:
        """Steps are sent; `[R]` their priorities, see `StepBatch`.

        A tenant's n-th step under way stands where it would if all had as much there for their weights: so the first steps of a
        newcomer go before what others have waiting at the door, until it has its share. Steps of one tenant keep their order.

        Args:
            tenants: whose steps they are, and how many, one after the other.
            waiting: whose steps wait still.
            weight: of tenants.
        """
        there = {*waiting, *self.held, *(tenant for tenant, _ in tenants)}
        width = sum(weight(tenant) for tenant in there) if len(there) > 1 else 0.0
        found = list[NDArray[np.int32]]()
        for tenant, count in tenants:
            place = np.arange(self.held[tenant], self.held[tenant] + count)
            if width:
                place = np.minimum(place * (width / weight(tenant)), PRIORITY_MAX).astype(np.int64)
            if (after := self._last.get(tenant, 0) - self._sent) > place[0]:
                np.maximum(place, after, out=place)
            self._last[tenant] = self._sent + int(place[-1])
            self.held[tenant] += count
            found.append(place.astype(np.int32))
        self._sent += sum(count for _, count in tenants)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def end(self, tenant: str, steps: int) -> None:
        """So many of a tenant's steps are not there any more."""
        self.held[tenant] -= steps
        if not self.held[tenant]:
            del self.held[tenant]
            self._last.pop(tenant, None)
