"""The store's time, as a shard's ticks tell it."""

import time
from collections.abc import Callable


class StoreTime:
    """The time of the store's clock between two looks at it, told by this machine's monotonic clock.

    It never goes back, and never stands still. Where the store's clock was set back, it goes at half its pace until that has
    caught up: what is due some time after something else, as a commit is, comes at most twice as late.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._offset_ms = 0.0  # from this machine's clock to the store's
        self._told_ms = 0.0
        self._told_at_ms = 1000 * now_s()

    def set(self, store_ms: int, began_s: float) -> None:
        """The store's clock has shown `store_ms` some time between `began_s`, on this machine's clock, and now."""
        self._offset_ms = store_ms - 1000 * (began_s + self._now_s()) / 2

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        here_ms = 1000 * self._now_s()
        self._told_ms = max(here_ms + self._offset_ms, self._told_ms + (here_ms - self._told_at_ms) / 2)
        self._told_at_ms = here_ms
        return int(self._told_ms)

    def at_ms(self, then_s: float) -> int:
        """The store's time at a moment of this machine's clock."""
        return int(1000 * then_s + self._offset_ms)
