"""Turns of uploads; what they are for, `test_at_once` shows on a database."""

import asyncio
from contextlib import AsyncExitStack

from ramify.store.turns import TURNS_A_TENANT, Turns


async def test_a_tenant_has_its_share_and_all_have_theirs() -> None:
    turns, began = Turns(TURNS_A_TENANT + 1), list[str]()

    async def upload(tenant: str) -> None:
        async with turns.of(tenant):
            began.append(tenant)

    async with AsyncExitStack() as held:
        for _ in range(TURNS_A_TENANT):
            await held.enter_async_context(turns.of("acme"))
        waits = asyncio.create_task(upload("acme"))
        await upload("other")
        await held.enter_async_context(turns.of("other"))
        late = asyncio.create_task(upload("third"))
        await asyncio.sleep(0)
        assert (began, turns.all.locked(), len(turns)) == (["other"], True, 3)
    await asyncio.gather(waits, late)
    assert sorted(began) == ["acme", "other", "third"]
    assert not len(turns), "who has none is forgotten"
