"""Where steps go: to the engine that has their tree's cache, unless it has too much while another idles."""

from ramify.scheduler.actors.dispatch import EVEN_S
from tests.unit.actors.desk import SLOTS, Desk, Engine, nodes, settled, steps

TREES = range(12)


async def answered(desk: Desk, *engines: Engine) -> bool:
    """Let engines answer what they have, and send what may be sent then; whether there was anything."""
    calls = [call for engine in engines for call in engine.calls if call.answered < len(call.batch)]
    for call in calls:
        call.answer(*range(call.answered, len(call.batch)))
    await settled()
    await desk.send()
    return bool(calls)


async def test_a_tree_s_steps_go_to_one_engine_and_later_ones_too() -> None:
    desk, commands = Desk(engines=3), [steps(problem, 1) for problem in TREES]
    for command in commands:
        await desk.send(command)
        (engine,) = [engine for engine in desk.engines if nodes(command)[0] in engine.sent]
        engine.calls[-1].answer(0)
        await settled()
        await desk.send(command)
        assert engine.sent[-1] == nodes(command)[0], "where the first was"
        engine.calls[-1].answer(0)
        await settled()
    assert len([engine for engine in desk.engines if engine.calls]) > 1, "not all trees are on one"
    await desk.dispatcher.close()


async def test_a_tree_that_had_to_move_stays_where_it_went() -> None:
    desk, commands = Desk(engines=2), [steps(problem, 4) for problem in TREES]
    await desk.send(*commands)
    while await answered(desk, *desk.engines):
        pass
    went = [nodes(command)[0] in desk.engines[1].sent for command in commands]
    preferred = []
    for command in commands:
        alone = Desk(engines=2)
        await alone.send(command)
        preferred.append(bool(alone.engines[1].sent))
        await alone.dispatcher.close()
        sent = [len(engine.sent) for engine in desk.engines]
        await desk.send(command)
        assert len(desk.engines[went[len(preferred) - 1]].sent) > sent[went[len(preferred) - 1]]
        while await answered(desk, *desk.engines):
            pass
    assert went != preferred, "some did have to move"
    await desk.dispatcher.close()


async def test_an_engine_that_has_its_part_takes_no_more() -> None:
    desk, commands = Desk(engines=2), [steps(problem, 4) for problem in TREES]
    await desk.send(*commands)
    loads = [lane.load for lane in desk.dispatcher._lanes]
    assert sum(loads) == 4 * len(TREES)
    assert max(loads) - min(loads) <= 2 * 4, "a tree is not divided"
    await desk.dispatcher.close()


async def test_what_waits_is_shared_with_an_engine_that_comes() -> None:
    desk, commands = Desk(engines=2), [steps(problem, 4) for problem in TREES]
    late = desk.engines[1]
    late.gone = True
    await desk.send(*commands)
    assert not late.sent
    late.gone = False
    await desk.pass_time()
    await desk.send()
    assert len(late.sent) == 2 * SLOTS, "a batch that runs and one at the door"
    while await answered(desk, *desk.engines):
        pass
    assert sorted(desk.sent) == sorted(nodes(*commands)), "each step once"
    await desk.dispatcher.close()


async def test_an_idle_engine_takes_what_waits_for_another() -> None:
    desk, commands = Desk(engines=2), [steps(problem, 4) for problem in TREES]
    await desk.send(*commands)
    idle, busy = desk.engines
    while await answered(desk, idle):
        desk.now_s += EVEN_S
    assert len(busy.sent) == 2 * SLOTS, "it has not answered a single one"
    assert len(idle.sent) >= 4 * len(TREES) - 3 * SLOTS, "it has done all but what the other runs, and a batch that waits there"
    await desk.dispatcher.close()
