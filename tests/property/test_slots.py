"""Which shard is to hold which slot."""

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.slots import SLOTS, UNEVEN, SlotView, assign, in_slots, slot_of

NAMES = [f"shard:{index}" for index in range(8)]
loads = st.lists(st.integers(0, 5) | st.integers(0, 10_000), min_size=SLOTS, max_size=SLOTS)
owners = st.lists(st.sampled_from([*NAMES, ""]), min_size=SLOTS, max_size=SLOTS)
living = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)


def views(owners: Sequence[str], loads: Sequence[int]) -> list[SlotView]:
    return [SlotView(slot, owner, load) for slot, (owner, load) in enumerate(zip(owners, loads, strict=True))]


def settled(found: Mapping[int, str], loads: Sequence[int]) -> list[SlotView]:
    """Everybody holds what the assignment says."""
    return views([found[slot] for slot in range(SLOTS)], loads)


def moved(before: Mapping[int, str], after: Mapping[int, str]) -> set[int]:
    return {slot for slot in range(SLOTS) if before[slot] != after[slot]}


@given(owners, loads, living)
def test_every_slot_has_one_living_shard_and_numbers_are_even(owners: list[str], loads: list[int], shards: list[str]) -> None:
    found = assign(views(owners, loads), shards)
    assert sorted(found) == list(range(SLOTS))
    assert {*found.values()} <= {*shards}
    numbers = [Counter(found.values())[shard] for shard in shards]
    assert max(numbers) - min(numbers) <= 1


@given(owners, loads, living)
@example(["shard:0"] * 32 + ["shard:1"] * 32, [64] * 8 + [0] * 56, ["shard:0", "shard:1"])  # a move would undo the numbers
@example([""] * SLOTS, [2**slot for slot in range(SLOTS)], NAMES)
def test_what_is_assigned_stays(owners: list[str], loads: list[int], shards: list[str]) -> None:
    found = assign(views(owners, loads), shards)
    assert assign(settled(found, loads), shards) == found


@given(owners, loads, living, st.randoms(use_true_random=False))
def test_everyone_computes_the_same(owners: list[str], loads: list[int], shards: list[str], chance: Random) -> None:
    table = views(owners, loads)
    found = assign(table, shards)
    chance.shuffle(table)
    chance.shuffle(shards)
    assert assign(table, shards) == found


@given(loads, living)
def test_no_swap_is_left_that_clearly_helps(loads: list[int], shards: list[str]) -> None:
    found = assign(views([""] * SLOTS, loads), shards)
    mine = {shard: [loads[slot] for slot in range(SLOTS) if found[slot] == shard] for shard in shards}
    heavy, light = max(mine.values(), key=sum), min(mine.values(), key=sum)
    gap, mean = sum(heavy) - sum(light), sum(loads) / len(shards)
    for load in heavy:
        for other in light:
            if 0 < load - other < gap:
                assert gap - abs(gap - 2 * (load - other)) <= UNEVEN * mean


@given(st.integers(1, 7), st.integers(0, 100))
def test_a_shard_that_joins_gets_its_part_and_nothing_else_moves(count: int, load: int) -> None:
    before = assign(views([""] * SLOTS, [load] * SLOTS), NAMES[:count])
    after = assign(settled(before, [load] * SLOTS), NAMES[: count + 1])
    assert len(moved(before, after)) == SLOTS // (count + 1)
    assert {after[slot] for slot in moved(before, after)} == {NAMES[count]}


@given(st.integers(2, 8), st.integers(0, 100), st.data())
def test_of_a_shard_that_leaves_only_its_own_slots_move(count: int, load: int, data: st.DataObject) -> None:
    before = assign(views([""] * SLOTS, [load] * SLOTS), NAMES[:count])
    gone = data.draw(st.sampled_from(NAMES[:count]))
    after = assign(settled(before, [load] * SLOTS), [name for name in NAMES[:count] if name != gone])
    assert moved(before, after) == {slot for slot in range(SLOTS) if before[slot] == gone}


def test_without_a_shard_nothing_is_assigned() -> None:
    assert assign(views([""] * SLOTS, [1] * SLOTS), []) == {}


def test_more_shards_than_slots() -> None:
    names = [f"shard:{index}" for index in range(SLOTS + 5)]
    found = assign(views([""] * SLOTS, [1] * SLOTS), names)
    assert max(Counter(found.values()).values()) == 1


@given(st.lists(st.integers(0, 2**40), max_size=50), st.sets(st.integers(0, SLOTS - 1)))
def test_a_tree_has_one_slot(problems: list[int], slots: set[int]) -> None:
    trees = tree_ids("job", np.array(problems, np.int64))
    assert in_slots(trees, sorted(slots)).tolist() == [slot in slots for slot in slot_of(trees).tolist()]
    assert ((slot_of(trees) >= 0) & (slot_of(trees) < SLOTS)).all()
