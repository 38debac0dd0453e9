import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.verifier import memory as memory_module
from ramify.verifier.backends.base import ChainScorer
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.batching import Batcher
from ramify.verifier.chains import CHAIN_STEPS_MAX, Chain, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ColumnScores
from ramify.verifier.errors import DeadlineError, InvalidRequestError, ModelError
from ramify.verifier.memory import Memory
from ramify.verifier.names import names_from, problem_name
from ramify.verifier.sent import Answers, SentChains
from tests.unit.verifier.fakes import PATIENCE_S, FakeScorer, chain, expected, next_turn


class Remembered(FakeScorer):
    remembers = True


@asynccontextmanager
async def remembering(scorer: FakeScorer | SimulatedScorer, bytes_max: int = 1 << 20) -> AsyncIterator[Memory]:
    memory = Memory(Batcher(scorer), bytes_max)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield memory
    finally:
        if isinstance(scorer, FakeScorer):
            scorer.gate.set()
        await memory.close()


def whole(*chains: Chain) -> SentChains:
    return SentChains(ChainColumns.of(chains))


def after(prefix: bytes, *steps: str) -> SentChains:
    return SentChains(ChainColumns.of([Chain("", steps)]), [prefix])


def name_of(chain: Chain) -> bytes:
    return names_from(problem_name(chain.problem.encode()), [step.encode() for step in chain.steps])[-1]


async def test_a_chain_is_computed_once() -> None:
    scorer = Remembered()
    async with remembering(scorer) as memory:
        first = await memory.score(whole(chain("a", "x", "yy"), chain("b", "x")))
        again = await memory.score(whole(chain("b", "x"), chain("a", "x", "yy"), chain("a", "x", "yy")))
    assert scorer.calls == [[chain("a", "x", "yy"), chain("b", "x")]]
    assert first.chains() == [expected(chain("a", "x", "yy")), expected(chain("b", "x"))]
    assert again.chains() == [first.chains()[1], first.chains()[0], first.chains()[0]]


async def test_of_a_longer_chain_new_steps_are_asked_for() -> None:
    known: list[list[int]] = []

    class Told(Remembered):
        def score_columns(self, chains: ChainColumns) -> ColumnScores:
            known.append(chains.known.tolist())
            found = super().score_columns(chains)
            scores = found.scores.copy()
            steps = np.arange(chains.step_count) - np.repeat(chains.step_ends - chains.length, chains.length)
            scores[steps < np.repeat(chains.known, chains.length)] = np.nan  # nobody looks at these
            return ColumnScores(scores, found.faults)

    async with remembering(Told()) as memory:
        await memory.score(whole(chain("a", "x")))
        found = await memory.score(whole(chain("a", "x", "yy"), chain("new", "s", "t")))
        assert found.chains() == [expected(chain("a", "x", "yy")), expected(chain("new", "s", "t"))]
        found = await memory.score(whole(chain("a", "x", "yy", "z", "zz")))
        assert found.chains() == [expected(chain("a", "x", "yy", "z", "zz"))]
    assert known == [[0], [1, 0], [0]]  # only the chain without its last step is looked for


async def test_a_chain_comes_as_a_name_and_its_new_steps() -> None:
    grown = chain("a", "x", "yy", "", "ü")
    async with remembering(Remembered()) as memory:
        first = await memory.score(whole(chain("a", "x")), names=True)
        assert first.names == [name_of(chain("a", "x"))]
        second = await memory.score(after(first.names[0], "yy", "", "ü"), names=True)
        assert second.chains() == [expected(grown)]
        assert second.names == [name_of(grown)]
        assert (await memory.score(whole(grown), names=True)).names == [name_of(grown)]
        assert (await memory.score(whole(grown))).names == ()


async def test_what_is_not_held_is_asked_for_and_the_others_are_scored() -> None:
    async with remembering(Remembered()) as memory:
        chains = ChainColumns.of([Chain("", ("s", "t")), Chain("b", ("s",)), Chain("c", ())])
        found = await memory.score(SentChains(chains, [b"?" * 16, b"", b""]), names=True)
    assert [fault.error for fault in found.faults] == [ChainError.NEED_PREFIX, ChainError.INVALID]
    assert [fault.chain for fault in found.faults] == [0, 2]
    assert found.length.tolist() == [2, 1, 0]
    assert np.isnan(found.scores[:2]).all()
    assert found.scores[2] == expected(chain("b")).scores[0]
    assert found.names == [b"", name_of(chain("b")), b""]


async def test_a_chain_does_not_grow_beyond_bounds() -> None:
    async with remembering(Remembered()) as memory:
        name = (await memory.score(whole(Chain("a", ("s",) * (CHAIN_STEPS_MAX - 1))), names=True)).names[0]
        longest = await memory.score(after(name, "s"), names=True)
        assert not longest.faults
        assert len(longest.scores) == CHAIN_STEPS_MAX
        (fault,) = (await memory.score(after(longest.names[0], "s"))).faults
    assert fault.error is ChainError.TOO_LONG
    assert fault.message == "the chain has 4,097 steps; more than 4,096 are not scored"


async def test_no_name_without_memory() -> None:
    scorer = Remembered()
    async with remembering(scorer, bytes_max=0) as memory:
        assert not memory.remembers
        assert (await memory.score(whole(chain("a")), names=True)).names == ()
        (fault,) = (await memory.score(after(name_of(chain("a")), "s"))).faults
    assert fault.error is ChainError.NEED_PREFIX


async def test_a_prefix_and_a_problem_are_one_too_many() -> None:
    with pytest.raises(InvalidRequestError, match="chain 1 has a prefix and a problem"):
        SentChains(ChainColumns.of([chain("a"), chain("b")]), [b"", b"?" * 16])
    with pytest.raises(InvalidRequestError, match="there are 1 prefixes for 2 chains"):
        SentChains(ChainColumns.of([chain("a"), chain("b")]), [b""])


async def test_identical_chains_that_are_under_way_are_computed_once() -> None:
    scorer = Remembered()
    scorer.gate.clear()
    async with remembering(scorer) as memory:
        first = asyncio.create_task(memory.score(whole(chain("a"))))
        await scorer.wait_entered()
        second = asyncio.create_task(memory.score(whole(chain("b"), chain("a"))))
        await next_turn()
        scorer.gate.set()
        assert (await first).chains() == [expected(chain("a"))]
        assert (await second).chains() == [expected(chain("b")), expected(chain("a"))]
    assert sorted(each.problem for call in scorer.calls for each in call) == ["a", "b"]


async def test_who_waits_for_another_is_not_lost_with_it() -> None:
    scorer = Remembered()
    async with remembering(scorer) as memory:
        scorer.gate.clear()
        busy = asyncio.create_task(memory.score(whole(chain("busy"))))
        await scorer.wait_entered()
        first = asyncio.create_task(memory.score(whole(chain("a"))))
        await next_turn()
        second = asyncio.create_task(memory.score(whole(chain("a"))))
        await next_turn()
        first.cancel()
        await asyncio.wait([first])
        scorer.gate.set()
        assert (await second).chains() == [expected(chain("a"))]
        await busy
    assert scorer.calls == [[chain("busy")], [chain("a")]]


async def test_what_is_computed_for_nobody_is_remembered() -> None:
    scorer = Remembered()
    scorer.gate.clear()
    async with remembering(scorer) as memory:
        gone = asyncio.create_task(memory.score(whole(chain("a"))))
        await scorer.wait_entered()
        gone.cancel()
        await asyncio.wait([gone])
        scorer.gate.set()
        await memory.score(whole(chain("b")))  # behind it
        await memory.score(whole(chain("a")))
    assert [each.problem for call in scorer.calls for each in call] == ["a", "b"]


async def test_faults_and_failures_are_not_remembered() -> None:
    class Moody(Remembered):
        well = False

        def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
            return [each if self.well else ChainScores([float("nan")]) for each in super().score(chains)]

    scorer = Moody()
    async with remembering(scorer) as memory:
        (fault,) = (await memory.score(whole(chain("a")), names=True)).faults
        assert (fault.error, fault.message) == (ChainError.MODEL, "the model gave nan for step 1, no number from 0 to 1")
        scorer.well = True
        assert (await memory.score(whole(chain("a")))).chains() == [expected(chain("a"))]
        with pytest.raises(ModelError):
            await memory.score(whole(chain("fail")))
        with pytest.raises(ModelError):
            await memory.score(whole(chain("fail")))


async def test_who_waits_for_another_has_a_deadline_too() -> None:
    scorer = Remembered()
    scorer.gate.clear()
    async with remembering(scorer) as memory:
        first = asyncio.create_task(memory.score(whole(chain("a"))))
        await scorer.wait_entered()
        with pytest.raises(DeadlineError):
            await memory.score(whole(chain("a")), asyncio.get_running_loop().time() + 0.01)
        scorer.gate.set()
        await first


STEPS = st.lists(st.sampled_from(["", "a", "b", "ab", "b\n", "é"]), min_size=1, max_size=5).map(tuple)
CHAINS = st.builds(Chain, st.sampled_from(["", "p", "pa"]), STEPS)


@settings(deadline=None)
@given(st.lists(st.lists(CHAINS, max_size=6), max_size=8), st.sampled_from([0, 600, 3000, 1 << 20]), st.data())
def test_scores_are_those_of_the_model_whatever_is_remembered(
    batches: list[list[Chain]], bytes_max: int, data: st.DataObject
) -> None:
    """Chains come whole or, where they grow from one that has a name, after it; the cache may be too small for any of it."""
    scorer = SimulatedScorer("sim")

    async def run() -> None:
        named: dict[Chain, bytes] = {}
        async with remembering(scorer, bytes_max) as memory:
            for batch in batches:
                prefixes, parts = list[bytes](), list[Chain]()
                for each in batch:
                    cut = data.draw(st.integers(0, len(each.steps) - 1))
                    prefix = named.get(Chain(each.problem, each.steps[:cut]), b"")
                    prefixes.append(prefix)
                    parts.append(Chain("", each.steps[cut:]) if prefix else each)
                sent = SentChains(ChainColumns.of(parts), prefixes)
                found = await memory.score(sent, names=True)
                again = {fault.chain for fault in found.faults}
                assert all(fault.error is ChainError.NEED_PREFIX and prefixes[fault.chain] for fault in found.faults)
                columns = ChainColumns.of(batch)
                right = Answers(scorer.score_columns(columns).scores, columns.length).chains()
                for index, (each, scores) in enumerate(zip(batch, found.chains(), strict=True)):
                    if index not in again:
                        assert scores == right[index]
                        if found.names and found.names[index]:
                            named[each] = found.names[index]
                            assert found.names[index] == name_of(each)

    asyncio.run(run())


def test_rules_are_not_remembered() -> None:
    assert not ChainScorer.remembers


class Judge(Remembered):
    """Reads a chain anew for each step that is asked for, and tells how many it read."""

    rereads = True

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        self.read.append(int((chains.length - chains.known).sum()))
        found = super().score_columns(chains)
        steps = np.arange(chains.step_count) - np.repeat(chains.step_ends - chains.length, chains.length)
        return ColumnScores(np.where(steps < np.repeat(chains.known, chains.length), np.nan, found.scores), found.faults)


async def test_of_a_judge_only_the_last_step_is_asked_where_no_other_is_wanted() -> None:
    scorer, chains = Judge(), [chain("a", "x", "yy", "zzz"), chain("b", "x")]
    async with remembering(scorer) as memory:
        last = [expected(each).scores[-1] for each in chains]
        for _ in range(2):
            assert (await memory.score(whole(*chains), last_only=True)).last().tolist() == last
        grown = chain("a", "x", "yy", "zzz", "w")
        assert (await memory.score(whole(grown), last_only=True)).last().tolist() == [expected(chain("w", "w")).scores[0]]
        assert scorer.read == [2, 1]
        assert (await memory.score(whole(grown))).chains() == [expected(grown)]  # now all of them are wanted
        assert scorer.read == [2, 1, 4]
        assert (await memory.score(whole(*chains))).chains() == [expected(each) for each in chains]
        assert scorer.read == [2, 1, 4, 3]


async def test_three_who_ask_for_a_chain_that_can_not_be_scored() -> None:
    """Each has an answer, and nothing stays under way."""

    class Picky(Remembered):
        def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
            found = super().score(chains)
            return [ChainScores(error=ChainError.TOO_LONG, message="too long") if "!" in each.problem else scores
                    for each, scores in zip(chains, found, strict=True)]  # fmt: skip

    scorer = Picky()
    scorer.gate.clear()
    async with remembering(scorer) as memory:
        asked = [(chain("!a"), chain("!b")), (chain("!a"),), (chain("!b"), chain("!a"))]
        tasks = [asyncio.create_task(memory.score(whole(*chains))) for chains in asked]
        await scorer.wait_entered()
        scorer.gate.set()
        for task, chains in zip(tasks, asked, strict=True):
            assert [fault.error for fault in (await task).faults] == [ChainError.TOO_LONG] * len(chains)
        assert [fault.chain for fault in (await memory.score(whole(chain("!b")))).faults] == [0]


async def test_who_shares_a_chain_has_it_as_soon_as_it_is_there() -> None:
    """Not only when all is there that the other one asks for."""
    scorer = Remembered(batch_tokens_max=2)
    scorer.gate.clear()
    async with remembering(scorer) as memory:
        first = asyncio.create_task(memory.score(whole(chain("a"), chain("b"), chain("c"))))
        await scorer.wait_entered()
        second = asyncio.create_task(memory.score(whole(chain("a"))))
        await next_turn()
        scorer.stop_at = "b"
        scorer.gate.set()
        assert (await second).chains() == [expected(chain("a"))]
        assert not first.done()
        scorer.stop_at = None
        scorer.gate.set()
        assert len((await first).chains()) == 3


async def test_who_is_urgent_does_not_wait_for_who_is_not() -> None:
    scorer = Remembered(batch_tokens_max=2)
    scorer.gate.clear()
    async with remembering(scorer) as memory:
        busy = asyncio.create_task(memory.score(whole(chain("x"))))
        await scorer.wait_entered()
        slow = asyncio.create_task(memory.score(whole(chain("a"), chain("b")), priority=5))
        while memory.batcher.waiting_chains < 2:
            await next_turn()
        urgent = asyncio.create_task(memory.score(whole(chain("b")), priority=0))
        while memory.batcher.waiting_chains < 3:
            await next_turn()
        scorer.gate.set()
        assert (await urgent).chains() == [expected(chain("b"))]
        await asyncio.gather(busy, slow)
    assert scorer.calls[1] == [chain("b")]


async def test_names_do_not_make_a_small_request_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "WHOLE_BYTES_MAX", 3_000)
    async with remembering(Remembered()) as memory:
        name = (await memory.score(whole(chain("p" * 1_000)), names=True)).names[0]
        assert not (await memory.score(SentChains(ChainColumns.of([Chain("", ("s",))] * 2), [name] * 2))).faults
        with pytest.raises(InvalidRequestError, match="with what they continue: send fewer at once"):
            await memory.score(SentChains(ChainColumns.of([Chain("", ("s",))] * 3), [name] * 3))
