"""Jobs that run: in which order, and how many of them are told; the same of every kind of store."""

import pytest

from ramify.store import running
from ramify.store.schema import SLOTS
from ramify.store.tenants import DAY_MS
from tests.unit.store.helpers import TTL_MS, commit, delta
from tests.unit.store.stores import Store


async def test_each_tenants_first_are_told_and_what_is_known_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "OTHERS_MAX", 2)
    for name, priority in {"a": 0, "b": 0, "c": 5, "d": 0, "e": 0}.items():
        await store.submit(1, name, priority=priority)
    await store.submit(1, "other", tenant="acme")
    jobs = await store.work.open_jobs()
    asked = {job.job_id: (await store.job(job.job_id)).request_id for job in jobs}
    assert [(asked[job.job_id], job.tenant, job.priority) for job in jobs] == [
        ("c", "default", 5),
        ("a", "default", 0),
        ("other", "acme", 0),
    ]
    known = {job.job_id: job for job in jobs}
    found = await store.work.open_jobs(known)
    assert len(found) == 5, "two more"
    assert {id(job) for job in jobs} <= {id(job) for job in found}
    await store.cancel(jobs[0].job_id)
    await store.submit(1, "urgent", priority=9)
    await store.submit(1, "urgent too", priority=9)
    found = await store.work.open_jobs(known)
    assert jobs[0] not in found, "it has ended"
    assert jobs[1:] == [job for job in found if job.job_id in known], "though others go before them now"
    assert [job.priority for job in found[:2]] == [9, 9]
    named = await store.work.named([jobs[0].job_id, jobs[2].job_id, found[0].job_id])
    assert named == [found[0], jobs[2]]


async def test_what_tenants_have_spent_today_is_summed_over_shards_and_jobs(store: Store) -> None:
    mine, other = await store.submit(2, "mine", tenant="acme"), await store.submit(2, "other")
    claim = await store.work.claim("shard:0@a", range(32), TTL_MS)
    rest = await store.other_work().claim("shard:1@b", range(32, SLOTS), TTL_MS)
    await store.work.commit(claim, commit(1, delta(mine, steps=3, tokens=30), delta(other, steps=1, tokens=7)), {})
    await store.other_work().commit(rest, commit(1, delta(mine, steps=4, tokens=40)), {})
    found = {name: (each.steps_today, each.tokens_today) for name, each in (await store.work.standings()).items()}
    assert found == {"acme": (7, 70), "default": (1, 7)}
    store.advance(DAY_MS)
    assert await store.work.standings() == {}, "another day"
