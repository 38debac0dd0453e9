"""Leases: who holds which slot, on the database's clock, and what shards tell of themselves with every beat."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.slots import SlotView

Clock = Callable[[AsyncConnection], Awaitable[int]]
"""Milliseconds since the epoch, on which leases are made and judged; see `db_now_ms`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on some slots: good for each of them until another claim takes it, whenever that is."""

    owner: str  # e.g. shard:0@9f2c04d1: what stands before the @ is the shard's name, the rest its incarnation
    epochs: Mapping[int, int]  # of each slot: rises with every claim of it

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots, rising."""
        return tuple(sorted(self.epochs))


@dataclass(frozen=True, slots=True)
class Wait:
    """Chains of one job that wait for something."""

    job_id: str
    what: str  # e.g. verifier
    reason: str  # e.g. unavailable: connection refused
    count: int  # chains
    since_ms: int  # on the store's clock


@dataclass(frozen=True, slots=True)
class Report:
    """What a shard tells of itself."""

    draining: bool = False  # it takes no more slots, and gives up those that it has
    loads: Mapping[int, int] = field(default_factory=dict)  # live chains of its slots; of a slot that is left out: as before
    waits: Sequence[Wait] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """How things stand after a beat, as the whole system sees it."""

    now_ms: int  # on the store's clock
    held: Mapping[int, int]  # the owner's slots, and the epoch of each
    slots: list[SlotView]  # every slot by its number, to be assigned: an owner whose lease has ended is "", a predecessor of the
    # same shard's name is its successor
    shards: list[str]  # owners that are alive and not draining, the newest of each shard's name


def shard_of(owner: str) -> str:
    """The name of an owner's shard."""
    return owner.partition("@")[0]
