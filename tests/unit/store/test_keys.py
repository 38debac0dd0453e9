"""API keys, tenants and the audit log in the store."""

import asyncio

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store import audit as log
from ramify.store.audit import KEPT_DAYS, Actor, Audit, record
from ramify.store.database import Database
from ramify.store.errors import InvalidName, JobNotFound, KeyNotFound, StoreBusy
from ramify.store.jobs import Jobs
from ramify.store.keys import Keys, Role, parts_of
from ramify.store.schema import audit, usage
from ramify.store.tenants import DAY_MS, Tenant, Tenants
from ramify.store.uploads import Uploads
from ramify.store.work import Work
from tests.unit.store.helpers import FILLED, SPEC, chunk

NOW_MS = 1_000 * DAY_MS
OPERATOR = Actor("", "me", "store from here")


async def clock(_: AsyncConnection) -> int:
    return NOW_MS


async def test_a_key_is_found_by_its_id_and_known_by_its_secret(database: Database) -> None:
    keys = Keys(database, clock)
    key, text = await keys.create(OPERATOR, "acme", Role.SUBMIT, "ci", days=2)
    other, other_text = await keys.create(OPERATOR, "acme", Role.READ, "eyes")
    parts, others = parts_of(text), parts_of(other_text)
    assert parts is not None
    assert others is not None
    assert (parts[0], others[0]) == (key.key_id, other.key_id)
    assert (key.fits(parts[1]), key.fits(others[1]), key.fits("")) == (True, False, False)
    assert await keys.known(frozenset((key.key_id, "0" * 12))) == {key.key_id: key}
    assert (key.fault(NOW_MS), key.fault(NOW_MS + 2 * DAY_MS), other.fault(2**62)) == ("", "has expired", "")
    revoked = await keys.revoke(OPERATOR, other.key_id)
    assert (revoked.fault(NOW_MS), (await keys.revoke(OPERATOR, other.key_id))) == ("was revoked", revoked)
    assert {each.key_id for each in await keys.listed("acme")} == {key.key_id, other.key_id}
    assert await keys.listed("another") == []
    done = [(entry.action, entry.subject, entry.key_id, entry.at_ms) for entry in await Audit(database).latest(10)]
    assert done == [
        ("keys.revoke", other.key_id, "me", NOW_MS),  # once, though it was said twice
        ("keys.create", other.key_id, "me", NOW_MS),
        ("keys.create", key.key_id, "me", NOW_MS),
    ]


async def test_names_that_are_none(database: Database) -> None:
    keys = Keys(database, clock)
    for tenant in ("", "a b", "-a", "ä", "a\x1fb", "a" * 65):
        with pytest.raises(InvalidName, match="a tenant's name has"):
            await keys.create(OPERATOR, tenant, Role.READ, "x")
        with pytest.raises(InvalidName, match="a tenant's name has"):
            await Tenants(database).put(Tenant(tenant))
    with pytest.raises(InvalidName, match="a key's name has"):
        await keys.create(OPERATOR, "acme", Role.READ, "two\nlines")
    with pytest.raises(KeyNotFound, match="there is no key 'nope'"):
        await keys.revoke(OPERATOR, "nope")
    assert await Audit(database).latest(10) == []


async def test_jobs_are_seen_by_whom_they_belong_to(database: Database) -> None:
    """Below the gateway: whatever it asks for, the store answers within the scope of who asks."""
    mine, theirs = Actor("acme", "k1"), Actor("other", "k2")
    job = await Uploads(database, by=mine).create("r", SPEC, FILLED, chunk(0, "p0", last=True), "call")
    other = await Uploads(database, by=theirs).create("r", SPEC, FILLED, chunk(0, "p0", last=True), "call")
    plain = await Uploads(database).create("r", SPEC, FILLED, chunk(0, "p0", last=True), "call")
    assert len({job.job_id, other.job_id, plain.job_id}) == 3
    scoped = Jobs(database, by=theirs)
    for ask in (
        scoped.get,
        scoped.cancel,
        lambda job_id: scoped.history(job_id, 0),
        lambda job_id: scoped.results(job_id, 1, -1),
    ):
        with pytest.raises(JobNotFound):
            await ask(job.job_id)
    with pytest.raises(JobNotFound):
        await scoped.tree(job.job_id, 0)
    assert [found.job_id for found in (await scoped.page(10, None, 0))[0]] == [other.job_id]
    everywhere = Jobs(database, by=Actor("ops", "k3", everywhere=True))
    assert len((await everywhere.page(10, None, 0))[0]) == 3
    await everywhere.cancel(job.job_id)
    entries = [(entry.action, entry.key_id, entry.tenant, entry.subject) for entry in await Audit(database).latest(10)]
    assert entries == [
        ("CancelJob", "k3", "ops", job.job_id),
        ("CreateJob", "k2", "other", other.job_id),
        ("CreateJob", "k1", "acme", job.job_id),
    ]


async def test_what_is_old_is_forgotten(database: Database) -> None:
    async with database.write() as connection:
        for days_ago in (KEPT_DAYS + 2, KEPT_DAYS + 1, KEPT_DAYS - 1, 0):
            await record(connection, NOW_MS - days_ago * DAY_MS, OPERATOR, "tenants.set", "x\0" * 100, detail="y" * 1000)
            day = NOW_MS // DAY_MS - days_ago
            await connection.execute(insert(usage).values(tenant="acme", day=day, shard="s", steps=1, tokens=1))
    await Work(database, clock).sweep(None)
    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(usage)) == 2
        assert await connection.scalar(select(func.count()).select_from(audit)) == 2
    for entry in await Audit(database).latest(10):
        assert (entry.subject, len(entry.detail)) == ("x" * 100, 500)
    older, newer = (entry.number for entry in reversed(await Audit(database).latest(10)))
    assert [entry.number for entry in await Audit(database).following(0, 1)] == [older]
    assert [entry.number for entry in await Audit(database).following(older, 10)] == [newer]


async def test_who_goes_on_after_an_entry_misses_none(postgres_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two transactions at once that which has the smaller number ends last."""
    database = Database(postgres_store)
    audits = Audit(database)
    await audits.refused(OPERATOR, "before", "", "", "")
    (before,) = await audits.following(0, 10)
    async with database.write() as connection:
        await record(connection, NOW_MS, OPERATOR, "slow", "")
        await audits.refused(OPERATOR, "quick", "", "", "")
        with monkeypatch.context() as patched:
            patched.setattr(log, "SETTLE_S", 0.05)
            with pytest.raises(StoreBusy, match="have not ended"):
                await audits.following(before.number, 10)
        reading = asyncio.create_task(audits.following(before.number, 10))
    assert [entry.action for entry in await reading] == ["slow", "quick"]
    await database.close()
