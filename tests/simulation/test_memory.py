"""Memory follows what lives, not what was."""

import numpy as np
import pytest

from ramify.scheduler import shard
from ramify.scheduler.events import Event
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.policies.knobs import POLICIES
from tests.simulation.world import Weather, Work, World, admitted, chains, plan

COMPACT_MIN = 64
AT_ONCE = 4  # trees open at a time


class Trickle(World):
    """Admits trees a few at a time, as a shard's owner does."""

    def _begin(self) -> None:
        super()._begin()
        self._pending = []
        self.waiting = [(work, problem) for work in self.works for problem in work.problems]
        self.rows_max = self.plans_max = self.trees_max = self.live_rows_max = 0

    def turn(self) -> None:
        while self.waiting and self.shard.live_trees < AT_ONCE:
            work, problem = self.waiting.pop(0)
            self.feed([admitted(work, [problem])])
        super().turn()
        forest = self.shard.forest
        self.rows_max = max(self.rows_max, forest.size)
        self.plans_max = max(self.plans_max, len(self.shard.plans))
        self.trees_max = max(self.trees_max, forest.trees.size)
        self.live_rows_max = max(self.live_rows_max, live_rows(self))


def live_rows(world: World) -> int:
    """Rows that a compaction would have to keep at this moment."""
    forest = world.shard.forest
    status = forest.status[: forest.size]
    open_tree = forest.trees.status[forest.tree[: forest.size]] != TreeStatus.FREE
    stays = (status != Status.PRUNED) | forest.trees.whole[forest.tree[: forest.size]]
    keep = (open_tree & stays) | (forest.dirty[: forest.size] != 0)
    return int(keep.sum())


@pytest.mark.parametrize("policy", POLICIES)
def test_many_trees_one_after_another_need_the_room_of_a_few(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "COMPACT_MIN", COMPACT_MIN)
    works = [Work(plan(f"job-{index}", policy=policy, **chains(policy, 4)), (0, 1)) for index in range(30)]
    world = Trickle(works, Weather(delay_ms_max=8, batch_max=8), seed=1)
    world.run()
    world.check_ended()
    for _ in range(5):
        world.turn()  # the shard hears of its last commit
    sampled = len(world.store.steps)
    assert sampled > 200
    # What a compaction keeps lived at that moment; twice that, and what one turn adds, triggers the next look.
    assert world.rows_max <= shard.GROWTH * max(COMPACT_MIN, 2 * world.live_rows_max) + AT_ONCE * 5
    assert world.rows_max < sampled / 3
    assert world.trees_max < 40
    assert world.plans_max < 40, "plans go with their trees"
    assert world.shard.messages == {}


def test_dead_branches_are_freed_after_their_commit_and_not_before() -> None:
    """Rows that are pruned are there until they are written; a compaction after that drops them."""
    freed = 0

    def pruned(world: World, events: list[Event]) -> None:
        nonlocal freed
        forest = world.shard.forest
        forest.compact()
        size = forest.size
        names = set(zip(forest.trees.tree_id[forest.tree[:size]].tolist(), forest.node_id[:size].tolist(), strict=True))
        sampled = {name for event in world.lives[-1] for each in event for name in names_of(each)}
        missing = sampled - names - {*world.store.steps}
        assert not missing, f"{missing} are gone and not committed"
        freed = max(freed, len({*world.store.steps} - names))

    world = World(
        [Work(plan(n=8, keep=2, max_steps=9, finished="refill"), (0, 1))],
        Weather(delay_ms_max=8, batch_max=4),
        seed=5,
        watch=pruned,
    )
    world.run()
    assert freed > 10


def names_of(event: Event) -> list[tuple[int, int]]:
    if type(event).__name__ != "StepsSampled":
        return []
    return list(zip(event.tree_id.tolist(), event.node_id.tolist(), strict=True))  # type: ignore[union-attr]


def test_columns_shrink_again() -> None:
    """A wave of trees leaves no allocation behind."""
    world = World([Work(plan(n=16, keep=4), tuple(range(100)))])
    for _ in range(6):
        world.turn()
    high = world.shard.forest.nbytes
    world.run()
    for _ in range(4):
        world.turn()
    world.shard.forest.compact()
    assert world.shard.forest.size == 0
    assert world.shard.forest.nbytes < high / 20
    assert np.all(world.shard.forest.trees.status[: world.shard.forest.trees.size] == TreeStatus.FREE)
