"""Bounds of a shell: what it may hold, how long it waits, when it stops and asks."""

from dataclasses import dataclass, field

from ramify.scheduler.shard import ShardLimits


@dataclass(frozen=True, slots=True)
class ShellLimits:
    """See the module."""

    trees_max: int = 4096  # open at once, but for those that were open when their slots came
    lease_ms: int = 15_000  # a shard that was not heard of for so long loses its slots to others
    backlog_steps_max: int = 1_000_000  # sampled and not durable; beyond any of these bounds nothing more is sampled
    backlog_bytes_max: int = 256 << 20
    backlog_s_max: float = 10.0  # since the commit that is being written was begun
    retention_ms: int | None = None  # jobs that ended longer ago are deleted; None: none is
    shard: ShardLimits = field(default_factory=ShardLimits)
