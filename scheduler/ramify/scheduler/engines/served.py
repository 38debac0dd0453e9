"""What an engine counts whose slots and prefix cache are another program's."""

from dataclasses import dataclass

from ramify.scheduler.engines.base import EngineStats


@dataclass(slots=True)
class Served:
    """Sums since the engine was made, see `EngineStats`."""

    hits: int = 0
    misses: int = 0
    prefilled: int = 0
    sampled: int = 0
    slot_busy_s: float = 0.0

    def looked_up(self, *, missed: bool) -> None:
        """A group has ended; `missed`: the cache did not hold its chain."""
        self.misses += missed
        self.hits += not missed

    def stats(self, *, rows_running: int, rows_waiting: int, rows_sampled: int) -> EngineStats:
        """As they stand, with the rows that there are now and those that have ended."""
        return EngineStats(
            rows_running=rows_running,
            rows_waiting=rows_waiting,
            prefix_hits=self.hits,
            prefix_misses=self.misses,
            tokens_prefilled=self.prefilled,
            rows_sampled=rows_sampled,
            tokens_sampled=self.sampled,
            slot_busy_s=self.slot_busy_s,
        )
