"""Leases: every kind of store holds slots for one owner at a time, by its own clock, and tells jobs who has taken over."""

import pytest

from ramify.scheduler.slots import SLOTS, SlotView, assign
from ramify.store.errors import Fenced
from ramify.store.work import Claim, Pins, Report, Wait
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    TTL_MS,
    Step,
    commit,
    delta,
    index_in_slot,
    node_ids,
    result,
    rows,
    scores,
    snapshot,
    tree_id,
)
from tests.unit.store.stores import Store

EVERY = range(SLOTS)
QUIET = Report()


def notices(history: list[job_pb2.JobEvent]) -> list[tuple[int, str]]:
    return [(event.notice.kind, event.notice.text) for event in history if event.HasField("notice")]


async def test_at_first_nobody_holds_anything(store: Store) -> None:
    beat = await store.work.beat("shard:0@a", TTL_MS, QUIET)
    assert (beat.held, beat.shards) == ({}, ["shard:0@a"])
    assert beat.slots == [SlotView(slot, "", 0) for slot in EVERY]


async def test_slots_have_one_owner_until_the_lease_ends(store: Store) -> None:
    first = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    assert (first.owner, first.slots) == ("shard:0@a", tuple(EVERY))
    store.advance(TTL_MS - 1)
    assert await store.work.claim("shard:1@b", EVERY, TTL_MS) == Claim("shard:1@b", {})
    store.advance(1)
    second = await store.work.claim("shard:1@b", [3, 5], TTL_MS)
    assert second.slots == (3, 5)
    assert all(second.epochs[slot] == first.epochs[slot] + 1 for slot in second.slots)
    beat = await store.work.beat("shard:1@b", TTL_MS, QUIET)
    assert beat.held == second.epochs
    assert [view.owner for view in beat.slots] == ["shard:1@b" if slot in (3, 5) else "" for slot in EVERY]


async def test_a_claim_takes_what_it_can_get(store: Store) -> None:
    await store.work.claim("shard:0@a", [1, 2], TTL_MS)
    assert (await store.work.claim("shard:1@b", [0, 1, 2, 3], TTL_MS)).slots == (0, 3)
    assert (await store.work.claim("more shards than slots@c", [], TTL_MS)).slots == ()


async def test_a_beat_prolongs_every_lease_of_its_owner_alone(store: Store) -> None:
    mine = await store.work.claim("shard:0@a", [1], TTL_MS)
    await store.work.claim("shard:1@b", [2], TTL_MS)
    store.advance(TTL_MS - 1)
    assert (await store.work.beat("shard:0@a", TTL_MS, QUIET)).held == mine.epochs
    store.advance(TTL_MS - 1)
    assert (await store.work.claim("shard:2@c", EVERY, TTL_MS)).slots == (0, *range(2, SLOTS))


async def test_a_lease_that_has_ended_goes_on_if_nobody_wanted_it(store: Store) -> None:
    job = await store.submit(1, "request")
    claim = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    store.advance(100 * TTL_MS)
    await store.work.commit(claim, commit(1, delta(job), nodes=rows(Step(tree_id(job, 0), 2))), {})
    assert (await store.work.beat("shard:0@a", TTL_MS, QUIET)).held == claim.epochs
    assert (await store.work.claim("shard:1@b", EVERY, TTL_MS)).slots == ()


async def test_the_same_shard_started_anew_takes_over_at_once(store: Store) -> None:
    job = await store.submit(1, "request")
    dead = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    await store.work.beat("shard:0@a", TTL_MS, QUIET)
    store.advance(1)
    beat = await store.work.beat("shard:0@b", TTL_MS, QUIET)
    assert beat.shards == ["shard:0@b"], "the newest of its name"
    assert {view.owner for view in beat.slots} == {"shard:0@b"}, "its slots are due to its successor"
    assert beat.held == {}
    alive = await store.work.claim("shard:0@b", EVERY, TTL_MS)
    assert alive.epochs == {slot: epoch + 1 for slot, epoch in dead.epochs.items()}
    with pytest.raises(Fenced):
        await store.work.commit(dead, commit(1, delta(job), nodes=rows(Step(tree_id(job, 0), 2))), {})
    assert notices(await store.history(job.job_id)) == [
        (job_pb2.NOTICE_KIND_TAKEOVER, "shard:0 took over 64 slots from its predecessor")
    ]


async def test_a_zombie_writes_nothing_to_what_is_another_s(store: Store) -> None:
    job = await store.submit(1000, "request")
    zombie = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    lost, kept = index_in_slot(job, 5), index_in_slot(job, 6)
    await store.work.commit(zombie, commit(1, delta(job), nodes=rows(Step(tree_id(job, lost), 2, score=float("nan")))), {})
    store.advance(TTL_MS)
    await store.work.claim("shard:1@b", [5], TTL_MS)
    before, first = await store.job(job.job_id), dict[int, int]()
    late = scores((tree_id(job, lost), 2, 0.5))
    wrong = (
        commit(2, delta(job), nodes=rows(Step(tree_id(job, lost), 3), Step(tree_id(job, kept), 3))),
        commit(2, delta(job), late=late),
        commit(2, delta(job, result(job, lost))),
        commit(2, snapshots=[snapshot(5)]),
        commit(2, released=(4, 5)),
        commit(2, delta(job)),  # touches no slot: so it needs all of them
    )
    for one in wrong:
        with pytest.raises(Fenced, match=r"^shard:0@a does not hold slots 5 any more: another has taken over$") as caught:
            await store.work.commit(zombie, one, first)
        assert (caught.value.owner, caught.value.slots) == ("shard:0@a", (5,))
    assert first == {}
    assert await store.job(job.job_id) == before
    assert node_ids(await store.tree(job.job_id, lost)) == [2]
    await store.work.commit(zombie, commit(2, delta(job), nodes=rows(Step(tree_id(job, kept), 3))), {})
    assert node_ids(await store.tree(job.job_id, kept)) == [3], "what it still holds it may write"


async def test_slots_that_were_never_claimed_are_nobody_s_to_write(store: Store) -> None:
    job = await store.submit(1, "request")
    (slot,) = {tree_id(job, 0) % SLOTS}
    others = await store.work.claim("shard:0@a", [each for each in EVERY if each != slot], TTL_MS)
    with pytest.raises(Fenced):
        await store.work.commit(others, commit(1, delta(job), nodes=rows(Step(tree_id(job, 0), 2))), {})


async def test_a_slot_that_was_released_is_free_at_once(store: Store) -> None:
    job = await store.submit(1, "request")
    giver = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    await store.work.release(giver, range(32))
    with pytest.raises(Fenced):
        await store.work.commit(giver, commit(1, released=(31,)), {})
    taker = await store.work.claim("shard:1@b", EVERY, TTL_MS)
    assert taker.slots == tuple(range(32))
    await store.work.release(giver, EVERY)  # only what is still its own
    beat = await store.work.beat("shard:1@b", TTL_MS, QUIET)
    assert beat.held == taker.epochs
    history = await store.history(job.job_id)
    assert notices(history) == [(job_pb2.NOTICE_KIND_MOVE, "32 slots moved from shard:0 to shard:1")]
    assert history[-1].progress.takeovers == 0


async def test_a_shard_that_comes_back_to_its_own_moves_nothing(store: Store) -> None:
    job = await store.submit(1, "request")
    await store.work.release(await store.work.claim("shard:0@a", EVERY, TTL_MS), EVERY)
    assert (await store.work.claim("shard:0@b", EVERY, TTL_MS)).slots == tuple(EVERY)
    assert notices(await store.history(job.job_id)) == []


async def test_slots_are_freed_by_the_commit_that_is_the_last_word_about_them(store: Store) -> None:
    job = await store.submit(1000, "request")
    giver = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    index = index_in_slot(job, 7)
    last = commit(1, delta(job), nodes=rows(Step(tree_id(job, index), 2)), released=(7, 9))
    segment = await store.work.commit(giver, last, {})
    taker = await store.work.claim("shard:1@b", EVERY, TTL_MS)
    assert taker.slots == (7, 9)
    assert await store.work.commit(giver, last, {}) == segment, "its answer may be lost: then it is asked again"
    assert (await store.job(job.job_id)).progress.steps == 1
    with pytest.raises(Fenced):
        await store.work.commit(giver, commit(2, delta(job), nodes=rows(Step(tree_id(job, index), 3))), {})
    assert node_ids((await store.work.recover(taker)).steps) == [2]


async def test_a_takeover_is_told_to_jobs_that_run(store: Store) -> None:
    runs, ended = await store.submit(1, "runs"), await store.submit(1, "ended")
    await store.cancel(ended.job_id)
    await store.work.claim("shard:0@a", range(32), TTL_MS)
    await store.work.claim("shard:2@a", range(32, 40), TTL_MS)
    store.advance(TTL_MS)
    await store.work.claim("shard:1@b", range(8), TTL_MS)
    await store.work.claim("shard:1@b", range(8, 33), TTL_MS)
    await store.work.claim("shard:2@b", range(33, 40), TTL_MS)
    assert notices(await store.history(runs.job_id)) == [
        (job_pb2.NOTICE_KIND_TAKEOVER, "shard:1 took over 8 slots from shard:0, whose lease had ended"),
        (job_pb2.NOTICE_KIND_TAKEOVER, "shard:1 took over 25 slots from shard:0 and shard:2, whose leases had ended"),
        (job_pb2.NOTICE_KIND_TAKEOVER, "shard:2 took over 7 slots from its predecessor"),
    ]
    assert (await store.job(runs.job_id)).progress.takeovers == 3
    assert notices(await store.history(ended.job_id)) == []
    assert (await store.job(ended.job_id)).progress.takeovers == 0


async def test_who_claims_its_own_again_has_taken_over_from_nobody(store: Store) -> None:
    """The answer to a claim may be lost: then it is made again."""
    job = await store.submit(1, "request")
    first = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    again = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    assert again.epochs == {slot: epoch + 1 for slot, epoch in first.epochs.items()}
    assert notices(await store.history(job.job_id)) == []


async def test_everyone_sees_loads_and_who_may_have_slots(store: Store) -> None:
    await store.work.claim("shard:0@a", range(32), TTL_MS)
    await store.work.claim("shard:1@b", range(32, SLOTS), TTL_MS)
    await store.work.beat("shard:0@a", TTL_MS, Report(loads={slot: 10 + slot for slot in range(32)}))
    await store.work.beat("shard:0@a", TTL_MS, Report(loads={3: 7}))
    await store.work.beat("shard:1@b", TTL_MS, Report(loads={3: 1_000_000, 40: 5}))  # slot 3 is not its own
    beat = await store.work.beat("shard:2@c", TTL_MS, QUIET)
    assert [view.load for view in beat.slots[:5]] == [10, 11, 12, 7, 14]
    assert beat.slots[40] == SlotView(40, "shard:1@b", 5)
    assert beat.shards == ["shard:0@a", "shard:1@b", "shard:2@c"]
    beat = await store.work.beat("shard:1@b", TTL_MS, Report(draining=True))
    assert beat.shards == ["shard:0@a", "shard:2@c"]
    assert {*assign(beat.slots, beat.shards).values()} == {"shard:0@a", "shard:2@c"}
    beat = await store.work.beat("shard:1@b", TTL_MS, QUIET)
    assert beat.shards == ["shard:0@a", "shard:1@b", "shard:2@c"]


async def test_a_shard_is_alive_for_a_lease_after_its_last_beat(store: Store) -> None:
    start = (await store.work.beat("shard:0@a", TTL_MS, QUIET)).now_ms
    store.advance(TTL_MS - 1)
    beat = await store.work.beat("shard:1@b", TTL_MS, QUIET)
    assert (beat.shards, beat.now_ms) == (["shard:0@a", "shard:1@b"], start + TTL_MS - 1)
    store.advance(1)
    assert (await store.work.beat("shard:1@b", TTL_MS, QUIET)).shards == ["shard:1@b"]
    assert (await store.work.beat("shard:0@a", TTL_MS, QUIET)).shards == ["shard:0@a", "shard:1@b"]
    await store.work.leave("shard:1@b")
    assert (await store.work.beat("shard:0@a", TTL_MS, QUIET)).shards == ["shard:0@a"]


async def test_waits_are_shown_and_told(store: Store) -> None:
    job, other = await store.submit(1, "request"), await store.submit(1, "other")
    since = (await store.work.beat("shard:0@a", TTL_MS, QUIET)).now_ms
    wait = Wait(job.job_id, "verifier", "unavailable: connection refused", 340, since)
    for count in (340, 350):
        await store.work.beat("shard:0@a", TTL_MS, Report(waits=[Wait(job.job_id, "verifier", wait.reason, count, since)]))
    await store.work.beat("shard:1@b", TTL_MS, Report(waits=[Wait(job.job_id, "engine", "no engine", 1, since)]))
    shown = (await store.job(job.job_id)).waits
    assert [(each.what, each.reason, each.count, each.shard) for each in shown] == [
        ("verifier", wait.reason, 350, "shard:0"),
        ("engine", "no engine", 1, "shard:1"),
    ]
    assert shown[0].since_time.ToMilliseconds() == since
    assert list((await store.job(other.job_id)).waits) == []
    await store.work.beat("shard:0@a", TTL_MS, QUIET)
    assert [each.what for each in (await store.job(job.job_id)).waits] == ["engine"]
    store.advance(TTL_MS)
    assert list((await store.job(job.job_id)).waits) == [], "who is not there any more tells nothing"
    assert notices(await store.history(job.job_id)) == [
        (job_pb2.NOTICE_KIND_WAIT, "340 chains of shard:0 wait for the verifier: unavailable: connection refused"),
        (job_pb2.NOTICE_KIND_WAIT, "1 chain of shard:1 waits for the engine: no engine"),
        (job_pb2.NOTICE_KIND_RESUMED, "no chain of shard:0 waits for the verifier any more"),
    ]
    assert notices(await store.history(other.job_id)) == []


async def test_the_first_revisions_that_are_given_hold(store: Store) -> None:
    job = await store.submit(1, "request")
    claim = await store.work.claim("shard:0@a", range(32), TTL_MS)
    (opened,) = await store.work.open_jobs()
    assert opened.pins == Pins()
    assert await store.work.pin(claim, job.job_id, "g1", "", "") == Pins("g1")
    other = await store.work.claim("shard:1@b", range(32, SLOTS), TTL_MS)
    assert await store.other_work().pin(other, job.job_id, "g2", "v2", "") == Pins("g1", "v2")
    assert await store.work.pin(claim, job.job_id, "g1", "v1", "c1") == Pins("g1", "v2", "c1")
    (opened,) = await store.work.open_jobs()
    assert opened.pins == Pins("g1", "v2", "c1")
    assert (await store.job(job.job_id)).pins == job_pb2.Pins(generator="g1", verifier="v2", checker="c1")
    assert await store.work.pin(claim, "gone", "g9", "", "") == Pins("g9")


async def test_there_is_room_for_the_revisions_of_several_models(store: Store) -> None:
    job = await store.submit(1, "request")
    claim = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    several = ",".join(str(model) * 64 for model in range(8))
    assert await store.work.pin(claim, job.job_id, several, "", "") == Pins(several)
    assert (await store.job(job.job_id)).pins.generator == several


async def test_a_zombie_pins_nothing(store: Store) -> None:
    job = await store.submit(1, "request")
    zombie = await store.work.claim("shard:0@a", EVERY, TTL_MS)
    await store.work.claim("shard:0@b", [5], TTL_MS)
    with pytest.raises(Fenced):
        await store.work.pin(zombie, job.job_id, "g1", "v1", "c1")
    assert (await store.job(job.job_id)).pins == job_pb2.Pins()
