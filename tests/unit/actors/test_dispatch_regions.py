"""Regions: where work goes by what they cost and what the job allows; engines that join and leave; trees that are divided."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ramify.scheduler.actors.dispatch import EVEN_S, PROBE_S
from ramify.scheduler.commands import Generate
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.placement import Region, Routing, Terms, place
from ramify.scheduler.plan import Generator
from tests.unit.actors.desk import SLOTS, Desk, Engine, nodes, settled, steps
from tests.unit.actors.test_dispatch_placement import answered

TERMS = Terms({"dear": Region(4.0, 10, 500), "cheap": Region(2.0, 150, 300), "green": Region(3.0, 80, 20)}, delay_weight=0.0)


def desk(*regions: str, terms: Terms = TERMS) -> Desk:
    """One engine in each."""
    made = Desk(engines=len(regions))
    for engine, region in zip(made.engines, regions, strict=True):
        engine.region = region
    made.dispatcher.use(made.engines, terms)
    return made


def routed(command: Generate, **routing: Any) -> Generate:
    return replace(command, plan=replace(command.plan, routing=Routing(**routing)))


def sent(engine: Engine, command: Generate) -> int:
    return int(np.isin(command.node_id, np.array(engine.sent, np.uint64)).sum())


async def test_work_goes_where_it_costs_least() -> None:
    it = desk("dear", "cheap", "green")
    await it.send(steps(0, SLOTS))
    assert [len(engine.sent) for engine in it.engines] == [0, SLOTS, 0]
    await it.dispatcher.close()


async def test_what_matters_is_up_to_the_job() -> None:
    it = desk("dear", "cheap", "green")
    await it.send(routed(steps(0, 2), carbon_weight=0.1))
    await it.send(routed(steps(1, 2), price_weight=0.0, delay_weight=1.0))
    assert [len(engine.sent) for engine in it.engines] == [2, 0, 2]
    await it.dispatcher.close()


async def test_work_spills_over_and_returns() -> None:
    it, commands = desk("dear", "cheap"), [steps(problem, 2) for problem in range(5)]
    dear, cheap = it.engines
    await it.send(*commands)
    assert len(cheap.sent) == 1.5 * SLOTS, "it has a batch and a half"
    assert len(dear.sent) == 10 - 1.5 * SLOTS
    spilt = [command for command in commands if sent(dear, command)]
    while await answered(it, dear, cheap):
        pass
    await it.send(next(command for command in commands if sent(cheap, command)))
    await it.send(*spilt)
    assert len(cheap.calls[-1].batch) == 2, "one tree returns, for there are as many idle slots"
    assert len(dear.calls[-1].batch) == 2, "the other stays"
    assert it.dispatcher.moved_tokens == len(spilt[0].tokens)
    await it.dispatcher.close()


async def test_a_job_s_steps_stay_in_the_regions_that_it_allows() -> None:
    it = desk("dear", "cheap")
    commands = [routed(steps(problem, 4), regions=("dear",)) for problem in range(8)]
    await it.send(*commands)
    while await answered(it, *it.engines):
        pass
    assert [len(engine.sent) for engine in it.engines] == [32, 0]
    await it.dispatcher.close()


async def test_a_region_that_no_engine_belongs_to_is_told_and_other_jobs_go_on() -> None:
    it = desk("dear", "cheap")
    lost, other = routed(steps(0, 3), regions=("eu-west-1",)), steps(1, 2)
    other = replace(other, plan=replace(other.plan, job_id="other"))
    await it.send(lost, other)
    assert it.sent == nodes(other)
    (stuck,) = it.dispatcher.waits.values()
    assert stuck.steps == 3
    assert stuck.reason == (
        "generator is alive in cheap, dear, and the job allows eu-west-1 alone; no engine belongs to eu-west-1"
    )
    await it.dispatcher.close()


async def test_a_dead_engine_is_not_chosen_until_it_answers_again() -> None:
    it, commands = desk("dear", "cheap"), [steps(problem, 1) for problem in range(6)]
    dear, cheap = it.engines
    await it.send(commands[0])
    cheap.gone = True
    cheap.calls[0].fail()
    await settled()
    for command in commands[1:]:
        await it.send(command)
        await it.pass_time(PROBE_S)
        await answered(it, dear)
    assert cheap.sent == nodes(commands[0]), "nothing more"
    cheap.gone = False
    await it.pass_time()
    await it.send(commands[1])
    assert cheap.sent == nodes(*commands[:2]), "work returns"
    await it.dispatcher.close()


async def test_an_engine_that_joins_is_used_and_one_that_leaves_ends_what_it_is_at() -> None:
    it, commands = Desk(engines=1), [steps(problem, 4) for problem in range(6)]
    (old,) = it.engines
    await it.send(*commands)
    new = Engine("new")
    it.engines.append(new)
    it.dispatcher.use([old, new], Terms())
    await settled()
    await it.send()
    assert len(new.sent) > SLOTS, "what waits is shared with it"
    it.dispatcher.use([new], Terms())
    at_it = len(old.sent)
    await it.send(steps(6, 4))
    assert {lane.engine: lane.alive for lane in it.dispatcher.lanes} == {old.name: False, "new": True}
    while await answered(it, *it.engines):
        pass
    assert len(old.sent) == at_it, "no more was sent"
    assert sorted(it.sent) == sorted(nodes(*commands, steps(6, 4))), "each step once: what it was at has ended there"
    assert {lane.engine: lane.alive for lane in it.dispatcher.lanes} == {"new": True}
    await it.dispatcher.close()


async def test_an_engine_that_comes_again_before_it_has_left_is_another_one() -> None:
    it = Desk(engines=2)
    one, two = it.engines
    await it.send(steps(0, 2), steps(1, 2))
    it.dispatcher.use([two], Terms())
    it.dispatcher.use([one, two], Terms())
    await settled()
    while await answered(it, *it.engines):
        pass
    assert {lane.engine: lane.alive for lane in it.dispatcher.lanes} == {"engine 0": True, "engine 1": True}
    assert not it.dispatcher.busy
    await it.dispatcher.close()


async def test_a_tree_that_is_too_wide_for_an_engine_is_divided_and_its_parts_stay() -> None:
    it = Desk(engines=3)
    wide = steps(0, 5 * SLOTS)
    await it.send(wide)
    while await answered(it, *it.engines):
        pass
    parts = [[node for node in nodes(wide) if node in engine.sent] for engine in it.engines]
    assert all(parts), "each has one"
    assert it.dispatcher.moved_tokens == 2 * len(wide.tokens), "each prefills the prompt"
    grown = [children(wide, part[:1], 2) for part in parts]
    for engine, command in zip(it.engines, grown, strict=True):
        await it.send(command)
        assert sent(engine, command) == 2, "where their parent was sampled"
    assert it.dispatcher.moved_tokens == 2 * len(wide.tokens)
    await it.dispatcher.close()


def children(command: Generate, parents: list[int], count: int) -> Generate:
    """Steps that continue some of a command's."""
    at, one = np.flatnonzero(np.isin(command.node_id, np.array(parents, np.uint64))), np.zeros(len(parents) * count, np.int64)
    length = len(command.tokens) + 1
    return replace(
        command,
        tokens=np.tile(np.append(command.tokens, np.int32(1)), len(parents)),
        offsets=np.arange(len(parents) + 1) * length,
        parent_id=command.node_id[at],
        group=np.repeat(np.arange(len(parents), dtype=np.int32), count),
        hint=command.hint[one],
        tree_id=command.tree_id[one],
        node_id=np.repeat(command.node_id[at], count) + np.tile(np.arange(1, count + 1, dtype=np.uint64), len(parents)),
        code=command.code[one],
        attempt=command.attempt[one],
        depth=command.depth[one],
    )


async def test_the_tokens_of_chains_that_move_are_counted_once() -> None:
    it = Desk(engines=2)
    await it.send(steps(0, 1))
    (home,) = [engine for engine in it.engines if engine.sent]
    home.gone = True
    home.calls[0].fail()
    await settled()
    longer = children(steps(0, 1), nodes(steps(0, 1)), 3)
    await it.send(longer)
    assert it.dispatcher.moved_tokens == len(longer.tokens)
    await it.send(replace(longer, node_id=longer.node_id + np.uint64(9)))
    assert it.dispatcher.moved_tokens == len(longer.tokens), "it is at home there now"
    await asyncio.gather(it.dispatcher.close())


async def test_the_models_of_a_job_have_homes_of_their_own() -> None:
    it = Desk(engines=4)
    names = ("generator", "generator", "other", "other")
    for engine, name in zip(it.engines, names, strict=True):
        engine.info = replace(engine.info, name=name)
    both = (Generator("generator"), Generator("other"))
    mine = steps(0, 2)
    mine = replace(mine, plan=replace(mine.plan, generators=both))
    theirs = replace(mine, generator="other", node_id=mine.node_id + np.uint64(1))
    for _ in range(3):
        await it.send(mine, theirs)
        while await answered(it, *it.engines):
            pass
        mine = replace(mine, node_id=mine.node_id + np.uint64(2))
        theirs = replace(theirs, node_id=theirs.node_id + np.uint64(2))
    assert sorted(len(engine.sent) for engine in it.engines) == [0, 0, 6, 6]
    assert it.dispatcher.moved_tokens == 0
    await it.dispatcher.close()


async def test_a_backlog_that_an_idle_engine_may_not_take_is_left_where_it_is() -> None:
    it, placed = desk("dear", "cheap"), 0

    def choose(*given: Any) -> Any:
        nonlocal placed
        placed += 1
        return place(*given)

    it.dispatcher._homes._choose = choose
    await it.send(*(routed(steps(problem, 4), regions=("dear",)) for problem in range(8)))
    placed = 0
    for _ in range(5):
        it.now_s += EVEN_S
        await it.send()
    assert placed == 0
    await it.send(steps(9, 1))
    await it.dispatcher.close()


async def test_a_model_on_small_engines_divides_no_trees_of_another() -> None:
    it = Desk(engines=4)
    for engine in it.engines[:2]:
        engine.info = replace(engine.info, name="small", slots=1)
    wide, small = steps(0, SLOTS), steps(1, 1)
    small = replace(small, generator="small")
    await it.send(wide, small)
    while await answered(it, *it.engines):
        pass
    await it.send(replace(wide, node_id=wide.node_id + np.uint64(1)), replace(small, node_id=small.node_id + np.uint64(1)))
    assert [len(engine.calls) for engine in it.engines if engine.info.name != "small"].count(2) == 1, "both times on one engine"
    assert it.dispatcher.moved_tokens == 0
    await it.dispatcher.close()


@dataclass
class Slow(Engine):
    """It takes its time to say what it is."""

    answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def describe(self) -> ModelInfo:
        await self.answers.wait()
        return self.info


async def test_what_waits_is_sent_though_an_engine_that_leaves_answers_late() -> None:
    it, slow = Desk(engines=1), Slow("slow")
    (engine,) = it.engines
    engine.gone = True
    await it.send(steps(0, 2))
    it.dispatcher.use([engine, slow], Terms())
    await settled()
    it.dispatcher.use([engine], Terms())
    engine.gone = False
    await it.pass_time()
    slow.answers.set()
    await settled()
    await it.send()
    assert engine.sent == nodes(steps(0, 2))
    await it.dispatcher.close()


async def test_a_tree_stays_on_the_only_engine_when_another_joins() -> None:
    it, commands = Desk(engines=1), [steps(problem, 1) for problem in range(6)]
    (old,) = it.engines
    await it.send(*commands)
    while await answered(it, old):
        pass
    new = Engine("new")
    it.engines.append(new)
    it.dispatcher.use([old, new], Terms())
    await settled()
    for command in commands:
        await it.send(replace(command, node_id=command.node_id + np.uint64(1)))
        await answered(it, old)
    assert not new.calls
    assert it.dispatcher.moved_tokens == 0
    await it.dispatcher.close()


async def test_a_cache_that_was_lost_is_counted_though_the_engine_is_back() -> None:
    it, command = Desk(engines=1), steps(0, 1)
    (engine,) = it.engines
    await it.send(command)
    engine.calls[0].fail()
    await it.pass_time()
    await it.send(replace(command, node_id=command.node_id + np.uint64(1)))
    assert it.dispatcher.moved_tokens == len(command.tokens)
    await it.dispatcher.close()
