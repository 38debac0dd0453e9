"""Turns: how many uploads write at once. A tenant leaves room for the others, and all of them leave connections for who reads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

TURNS_A_TENANT = 4


class Turns:
    """A turn is taken before a connection is: who waits for one holds nothing that others need. First come, first served."""

    def __init__(self, most: int) -> None:
        """`most`: of all tenants at once."""
        self.all = asyncio.Semaphore(most)
        """Taken alone by transactions that calls share: of these there is one for all and one for a tenant, at most."""
        self._each = WeakValueDictionary[str, asyncio.Semaphore]()  # of tenants that have one, or wait

    def __len__(self) -> int:
        return len(self._each)

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """One of a tenant's `TURNS_A_TENANT`."""
        each = self._each.setdefault(tenant, asyncio.Semaphore(TURNS_A_TENANT))
        async with each, self.all:
            yield
