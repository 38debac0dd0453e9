"""A scorer that obeys the test."""

import asyncio
import threading
from collections.abc import Sequence

from ramify.verifier.backends.base import ChainScorer
from ramify.verifier.chains import Chain, ChainScores

PATIENCE_S = 20
"""How long a test waits for what must come: an upper bound for a busy machine, never a delay."""


class FakeScorer(ChainScorer):
    """Scores a step by its length; holds while the gate is closed; fails on chains whose problem is "fail"."""

    name = "fake"
    revision = "r1"
    backend = "rule"
    context_tokens_max = 7

    def __init__(self, batch_tokens_max: int = 1000, batch_wait_ms_max: float = 0.0) -> None:
        self.batch_tokens_max = batch_tokens_max
        self.batch_wait_ms_max = batch_wait_ms_max
        self.calls: list[list[Chain]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.stop_at: str | None = None  # the problem at which the gate closes

    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        self.calls.append(list(chains))
        self.entered.set()
        if self.stop_at in [chain.problem for chain in chains]:
            self.gate.clear()
        assert self.gate.wait(PATIENCE_S)
        if any(chain.problem == "fail" for chain in chains):
            raise ValueError("the fake was told to")
        return [expected(chain) for chain in chains]

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_S)


def expected(chain: Chain) -> ChainScores:
    return ChainScores([len(step) / 1024 for step in chain.steps])


def chain(name: str, *steps: str) -> Chain:
    return Chain(name, steps or ("s",))


async def next_turn() -> None:
    """Lets every task that can run do so once."""
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn
