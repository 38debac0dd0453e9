"""The simulated engine's memory, held against a plain one."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams, draw
from ramify.scheduler.engines.simulated_blocks import Blocks, Names
from tests.unit.engines.helpers import Job, batch_of, collect

ROOM = 12
Chain = tuple[int, ...]  # a block is known by all that is in it and before it


@dataclass
class Plain:
    """Blocks as they are told of: each with its users, and when it was given up."""

    users: dict[Chain, int] = field(default_factory=dict)
    given_up: dict[Chain, int] = field(default_factory=dict)
    unnamed: int = 0
    now: int = 0

    def put(self, block: Chain, users: int) -> None:
        self.users[block] = self.users.get(block, 0) + users
        if not self.users[block]:
            self.given_up[block] = self.now

    def evict(self) -> None:
        while len(self.users) + self.unnamed > ROOM:
            idle = [block for block, users in self.users.items() if not users]
            del self.users[min(idle, key=lambda block: (self.given_up[block], -len(block)))]


def names(chain: Chain) -> list[int]:
    return [hash(chain[: end + 1]) for end in range(len(chain))]


def prefixes(chain: Chain) -> list[Chain]:
    return [chain[: end + 1] for end in range(len(chain))]


class TwoMemories(RuleBasedStateMachine):
    """Rows come, fill blocks of their own and go, in one memory and the other."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.plain = Blocks(ROOM), Plain()
        self.running: list[tuple[Chain, int]] = []

    @rule(chain=st.lists(st.integers(0, 2), max_size=5).map(tuple), unnamed=st.integers(1, 3))
    def come(self, chain: Chain, unnamed: int) -> None:
        needed = unnamed + sum(not self.plain.users.get(each) for each in prefixes(chain))
        assert needed == unnamed + self.blocks.unused(names(chain))
        free = ROOM - self.plain.unnamed - sum(users > 0 for users in self.plain.users.values())
        assert self.blocks.free == free
        if needed > free:
            return
        self.blocks.use(names(chain), unnamed)
        self.plain.unnamed += unnamed
        for each in prefixes(chain):
            self.plain.put(each, 1)
        self.plain.evict()
        self.running.append((chain, unnamed))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), step=st.lists(st.integers(0, 2), max_size=3).map(tuple))
    def go(self, which: int, step: Chain) -> None:
        chain, unnamed = self.running.pop(which % len(self.running))
        whole = chain + step[:unnamed]
        self.blocks.fill(unnamed, names(whole)[len(chain) :])
        self.blocks.leave(names(chain))
        self.plain.now += 1
        self.plain.unnamed -= unnamed
        for each in prefixes(whole)[len(chain) :]:
            self.plain.put(each, 0)
        self.plain.now += 1
        for each in prefixes(chain):
            self.plain.put(each, -1)

    @rule(chain=st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple))
    def look(self, chain: Chain) -> None:
        found = self.blocks.cached(names(chain))
        assert [each in self.plain.users for each in prefixes(chain)] == [True] * found + [False] * (len(chain) - found)

    @invariant()
    def the_same(self) -> None:
        assert len(self.blocks) == len(self.plain.users) <= ROOM
        assert all(self.blocks.cached(names(each)) == len(each) for each in self.plain.users)


TestTwoMemories = TwoMemories.TestCase


@pytest.mark.parametrize("block", [1, 3, 16])
def test_equal_beginnings_have_equal_names_and_no_others(block: int) -> None:
    rng = np.random.default_rng(5)
    model = SimulatedParams(block_tokens=block, step_tokens_min=1, step_tokens_median=8, end_probability=0.3)
    known: dict[int, tuple[int, ...]] = {}
    chains: list[tuple[int, ...]] = [tuple(rng.integers(97, 99, size).tolist()) for size in (1, 5, 16, 40, 40, 48)]
    for turn in range(4):
        batch = batch_of([Job(chain, 100 * turn + row) for chain in chains for row in range(3)])
        outcome = draw(batch, model)
        found = Names.of(batch, outcome, block)
        steps = np.split(outcome.tokens, np.cumsum(outcome.token_count)[:-1])
        longer = []
        for row, group in enumerate(batch.group.tolist()):
            chain = batch.tokens[batch.offsets[group] : batch.offsets[group + 1]].tolist()
            mine = found.chain[found.chain_end[group] : found.chain_end[group + 1]]
            assert len(mine) == len(chain) // block
            filled = found.step[found.step_end[row] : found.step_end[row + 1]]
            whole = (*chain, *steps[row].tolist())
            assert len(mine) + len(filled) == max((len(chain) + int(outcome.token_cost[row]) - 1) // block, len(chain) // block)
            for at, name in enumerate([*mine, *filled]):
                assert known.setdefault(name, whole[: block * (at + 1)]) == whole[: block * (at + 1)]
            longer.append(whole)
        chains = longer[::3]
    assert len(set(known.values())) == len(known)


async def test_what_was_computed_is_found_again() -> None:
    """One row at a time, without bounds: all whole blocks that any row has had before, up to the last token."""
    engine = SimulatedEngine(SimulatedParams(step_tokens_median=20, end_probability=0.1, time_scale=1e-9))
    rng = np.random.default_rng(3)
    chains, computed, cached = [tuple(rng.integers(97, 99, 70).tolist()) for _ in range(3)], set[tuple[int, ...]](), 0
    for seed in range(60):
        chain = chains[int(rng.integers(len(chains)))]
        (row,) = await collect(engine, [Job(chain, seed)])
        found = 0
        while 16 * (found + 1) < len(chain) and chain[: 16 * (found + 1)] in computed:
            found += 1
        cached += 16 * found
        whole = chain + row.tokens
        written = len(chain) + row.cost - 1
        computed |= {whole[: 16 * (at + 1)] for at in range(written // 16)}
        chains.append(whole)
    assert engine.stats().tokens_cached == cached > 2000
