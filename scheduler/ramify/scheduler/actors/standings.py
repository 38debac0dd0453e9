"""What tenants may have and what they have spent, as the store said last."""

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from ramify.scheduler.slots import SLOTS
from ramify.store.tenants import Standing, Tenant

LOOK_S = 1.0  # between two looks: so long a tenant may go on beyond its tokens of a day


class Source(Protocol):
    """What is asked of `Work`."""

    def standings(self) -> Coroutine[Any, Any, dict[str, Standing]]:
        """See `Work`."""
        ...


class Standings:
    """See the module. While the store is away, what it said last holds."""

    def __init__(self, work: Source, now_s: Callable[[], float] = time.monotonic) -> None:
        self._work, self._now_s = work, now_s
        self.known: Mapping[str, Standing] = {}
        self._looked_s = -LOOK_S

    async def look(self) -> None:
        """Ask the store again, if it is time to."""
        if (now_s := self._now_s()) - self._looked_s >= LOOK_S:
            self.known = await self._work.standings()
            self._looked_s = now_s  # what could not be asked is asked again before anything is begun

    def weight(self, tenant: str) -> float:
        """A tenant's share as against others'."""
        return self._of(tenant).tenant.weight

    def chains_max(self, tenant: str, slots: int) -> int | None:
        """Live chains that a tenant may have in so many slots; None: any number."""
        most = self._of(tenant).tenant.live_chains_max
        return None if most is None else most * slots // SLOTS

    def spent(self, tenant: str) -> str:
        """Why nothing more is begun for a tenant today; empty: more is."""
        standing = self._of(tenant)
        if standing.tokens_left != 0:
            return ""
        most = standing.tenant.tokens_per_day_max
        return f"tenant {tenant} has spent its {most:,} tokens of today; it goes on at 00:00 UTC"

    def _of(self, tenant: str) -> Standing:
        return self.known.get(tenant) or Standing(Tenant(tenant))
