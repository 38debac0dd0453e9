import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.verifier.batching import Batcher
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import DeadlineError, ModelError, OverloadedError, UnavailableError
from tests.unit.verifier.fakes import PATIENCE_S, FakeScorer, chain, expected, next_turn


class Second(FakeScorer):
    """Takes a second for each chain, by its own clock."""

    now_s = 0.0

    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        self.now_s += len(chains)
        return super().score(chains)


@asynccontextmanager
async def batching(
    scorer: FakeScorer, queue_chains_max: int = 100, now_s: Callable[[], float] | None = None
) -> AsyncIterator[Batcher]:
    batcher = Batcher(scorer, queue_chains_max=queue_chains_max, now_s=now_s)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield batcher
    finally:
        scorer.gate.set()
        await batcher.close()


async def score(
    batcher: Batcher, chains: Sequence[Chain], deadline_s: float | None = None, priority: int = 0
) -> list[ChainScores]:
    columns = ChainColumns.of(chains)
    return (await batcher.score(columns, deadline_s, priority)).chains(columns)


async def hold(batcher: Batcher, scorer: FakeScorer) -> asyncio.Task[list[ChainScores]]:
    """Keeps the model busy with a chain, so that what comes next must wait."""
    scorer.gate.clear()
    scorer.entered.clear()
    task = asyncio.create_task(score(batcher, [chain("hold")]))
    await scorer.wait_entered()
    return task


async def submit(
    batcher: Batcher, *chains: Chain, deadline_s: float | None = None, priority: int = 0
) -> asyncio.Task[list[ChainScores]]:
    """Asks for some chains; they are in the queue then, or the model has them."""
    assert isinstance(batcher.scorer, FakeScorer)
    tokens, calls = batcher.waiting_tokens + int(ChainColumns.of(chains).fresh_bytes.sum()), len(batcher.scorer.calls)
    task = asyncio.create_task(score(batcher, chains, deadline_s, priority))
    while batcher.waiting_tokens < tokens and len(batcher.scorer.calls) == calls and not task.done():
        await next_turn()
    return task


async def test_requests_that_wait_together_share_a_batch() -> None:
    scorer = FakeScorer()
    async with batching(scorer) as batcher:
        held = await hold(batcher, scorer)
        tasks = [await submit(batcher, chain(name, "s" * len(name))) for name in ("a", "bb", "ccc")]
        assert batcher.waiting_chains == 3
        scorer.gate.set()
        assert await asyncio.gather(held, *tasks) == [[ChainScores([size / 1024])] for size in (1, 1, 2, 3)]
    assert [len(call) for call in scorer.calls] == [1, 3]


async def test_a_batch_has_a_bound_and_a_large_request_is_cut() -> None:
    scorer = FakeScorer(batch_tokens_max=10)
    chains = [chain(f"p{index}", "12") for index in range(7)]  # 4 characters each
    async with batching(scorer) as batcher:
        assert await score(batcher, chains) == [expected(each) for each in chains]
    assert [len(call) for call in scorer.calls] == [2, 2, 2, 1]


async def test_a_chain_longer_than_a_batch_goes_alone() -> None:
    scorer = FakeScorer(batch_tokens_max=10)
    chains = [chain("a"), chain("b" * 50), chain("c")]
    async with batching(scorer) as batcher:
        await score(batcher, chains)
    assert scorer.calls == [[each] for each in chains]


async def test_equal_chains_of_a_batch_are_computed_once() -> None:
    scorer = FakeScorer()
    chains = [chain("a", "x"), chain("b", "yy"), chain("a", "x")]
    async with batching(scorer) as batcher:
        assert await score(batcher, chains) == [expected(each) for each in chains]
    assert scorer.calls == [chains[:2]]


async def test_the_queue_is_bounded() -> None:
    scorer = FakeScorer()
    async with batching(scorer, queue_chains_max=3) as batcher:
        held = await hold(batcher, scorer)
        waiting = await submit(batcher, chain("a"), chain("b"))
        with pytest.raises(OverloadedError, match="2 chains waiting and room for 3; these are 2 more") as caught:
            await score(batcher, [chain("c"), chain("d")])
        assert caught.value.retry_delay_ms > 0
        fits = await submit(batcher, chain("c"))
        scorer.gate.set()
        await asyncio.gather(held, waiting, fits)
        assert len(await score(batcher, [chain("c"), chain("d")])) == 2
        assert batcher.waiting_chains == 0


async def test_the_retry_delay_is_what_the_queue_takes_at_the_recent_throughput() -> None:
    scorer = Second(batch_tokens_max=2)  # two bytes a chain
    async with batching(scorer, queue_chains_max=4, now_s=lambda: scorer.now_s) as batcher:
        await score(batcher, [chain("f")])
        held = await hold(batcher, scorer)
        waiting = await submit(batcher, *map(chain, "abcd"))
        held_tokens = int(ChainColumns.of(scorer.calls[-1]).fresh_bytes.sum())
        with pytest.raises(OverloadedError) as caught:
            await score(batcher, [chain("e")])
        assert caught.value.retry_delay_ms == 1000 * (4 + held_tokens / 2)
        scorer.gate.set()
        await asyncio.gather(held, waiting)


async def test_cancelled_work_is_not_computed() -> None:
    scorer = FakeScorer()
    async with batching(scorer) as batcher:
        held = await hold(batcher, scorer)
        gone, stays = await submit(batcher, chain("gone")), await submit(batcher, chain("stays"))
        gone.cancel()
        await asyncio.wait([gone])
        assert batcher.waiting_chains == 1
        scorer.gate.set()
        await asyncio.gather(held, stays)
    assert scorer.calls[1:] == [[chain("stays")]]


async def test_what_is_left_of_a_cancelled_request_is_not_computed() -> None:
    scorer = FakeScorer(batch_tokens_max=2)
    scorer.gate.clear()
    async with batching(scorer) as batcher:
        task = await submit(batcher, chain("a"), chain("b"), chain("c"))
        await scorer.wait_entered()
        task.cancel()
        await asyncio.wait([task])
        assert batcher.waiting_chains == 0
    assert scorer.calls == [[chain("a")]]


async def test_work_past_its_deadline_is_not_computed() -> None:
    scorer, now_s = FakeScorer(), [100.0]
    async with batching(scorer, now_s=lambda: now_s[0]) as batcher:
        held = await hold(batcher, scorer)
        late = await submit(batcher, chain("late"), deadline_s=101.0)
        early = await submit(batcher, chain("early"), deadline_s=110.0)
        now_s[0] = 102.0
        scorer.gate.set()
        assert await early == [expected(chain("early"))]
        with pytest.raises(DeadlineError):
            await late
        await held
    assert scorer.calls[1:] == [[chain("early")]]


async def test_who_has_the_lower_number_is_scored_first() -> None:
    scorer = FakeScorer(batch_tokens_max=2)
    async with batching(scorer) as batcher:
        held = await hold(batcher, scorer)
        given = (("a", 5), ("b", 0), ("c", -1), ("d", 0))
        tasks = [await submit(batcher, chain(name), priority=priority) for name, priority in given]
        scorer.gate.set()
        await asyncio.gather(held, *tasks)
    assert [call[0].problem for call in scorer.calls[1:]] == ["c", "b", "d", "a"]


async def test_who_can_not_be_in_time_is_told_at_once() -> None:
    scorer = Second(batch_tokens_max=2)  # two bytes a chain
    async with batching(scorer, now_s=lambda: scorer.now_s) as batcher:
        await score(batcher, [chain("a")])
        held = await hold(batcher, scorer)
        waiting = await submit(batcher, *map(chain, "abcd"))
        with pytest.raises(OverloadedError, match=r"busy: they would wait for about 7500 ms, too long for their deadline"):
            await score(batcher, [chain("e")], deadline_s=scorer.now_s + 14.9)
        patient = await submit(batcher, chain("f"), deadline_s=scorer.now_s + 15.1)
        scorer.gate.set()
        await asyncio.gather(held, waiting, patient)


async def test_what_has_expired_says_nothing_of_the_model() -> None:
    scorer = Second(batch_tokens_max=2)
    async with batching(scorer, now_s=lambda: scorer.now_s) as batcher:
        await score(batcher, [chain("a")])
        for _ in range(200):
            with pytest.raises(DeadlineError):
                await score(batcher, [chain("b")], deadline_s=scorer.now_s - 1)
        held = await hold(batcher, scorer)
        waiting = await submit(batcher, *map(chain, "abcd"))
        with pytest.raises(OverloadedError, match="about 7500 ms"):  # as if none had come
            await score(batcher, [chain("e")], deadline_s=scorer.now_s + 10)
        scorer.gate.set()
        await asyncio.gather(held, waiting)


async def test_a_throughput_that_is_wrong_does_not_keep_itself_alive() -> None:
    scorer = Second(batch_tokens_max=2)
    async with batching(scorer, now_s=lambda: scorer.now_s) as batcher:
        await score(batcher, [chain("a")])  # a second: what the model is thought to take from now on
        tries = 0
        for _ in range(100):
            try:
                await score(batcher, [chain("b")], deadline_s=scorer.now_s + 0.5)
                break
            except DeadlineError:
                tries += 1
        assert 0 < tries < 20


async def test_of_a_request_that_takes_longer_than_its_deadline_a_part_is_done_each_time() -> None:
    scorer = Second(batch_tokens_max=2)
    learned: list[int] = []
    async with batching(scorer, now_s=lambda: scorer.now_s) as batcher:
        await score(batcher, [chain("a")])
        chains = ChainColumns.of([*map(chain, "abcdefgh")])
        with pytest.raises(DeadlineError):
            await batcher.score(chains, scorer.now_s + 4.5, learn=lambda first, *_: learned.append(first))
    assert learned == [0, 1, 2, 3]


async def test_a_model_that_has_died_is_away_and_has_not_failed_the_chains() -> None:
    scorer = FakeScorer(batch_tokens_max=6)
    async with batching(scorer) as batcher:
        held = await hold(batcher, scorer)
        fails, waits = await submit(batcher, chain("fail")), await submit(batcher, chain("a"))
        scorer.failure = "its engine has died"
        scorer.gate.set()
        for task in (fails, waits):
            with pytest.raises(UnavailableError, match="model 'fake' scores no more: its engine has died"):
                await task
        await asyncio.wait([held])
        assert batcher.failure == "its engine has died"
        with pytest.raises(UnavailableError, match="scores no more"):
            await score(batcher, [chain("b")])


async def test_a_worker_that_ends_is_seen() -> None:
    class Broken(FakeScorer):
        @property
        def batch_wait_ms_max(self) -> float:
            raise ValueError("no number")

        @batch_wait_ms_max.setter
        def batch_wait_ms_max(self, value: float) -> None: ...

    async with batching(Broken()) as batcher:
        asking = asyncio.create_task(score(batcher, [chain("a")]))
        while not batcher.failure:
            await next_turn()
        assert batcher.failure == "its worker has ended: no number"
        with pytest.raises(UnavailableError, match="its worker has ended"):
            await score(batcher, [chain("b")])
        asking.cancel()
        await asyncio.wait([asking])


async def test_scores_come_to_whoever_learns_though_nobody_waits() -> None:
    scorer = FakeScorer(batch_tokens_max=2)
    scorer.gate.clear()
    learned: list[tuple[int, list[str]]] = []
    async with batching(scorer) as batcher:
        chains = ChainColumns.of([chain("a"), chain("b"), chain("c")])
        learn = lambda first, part, _: learned.append((first, [each.problem for each in part.chains()]))  # noqa: E731
        task = asyncio.create_task(batcher.score(chains, learn=learn))
        await scorer.wait_entered()
        task.cancel()
        await asyncio.wait([task])
        scorer.gate.set()
        await score(batcher, [chain("behind")])
    assert learned == [(0, ["a"])]


async def test_a_failure_fails_its_own_batch_only() -> None:
    scorer = FakeScorer(batch_tokens_max=10)
    async with batching(scorer) as batcher:
        held = await hold(batcher, scorer)
        # "fail" and the first chain of `cut` fill a batch; the rest of `cut` must not be computed.
        fails, cut = await submit(batcher, chain("fail")), await submit(batcher, chain("cut"), chain("cut2"))
        after = await submit(batcher, chain("after"))
        scorer.gate.set()
        for task in (fails, cut):
            with pytest.raises(ModelError, match="model 'fake' failed: ValueError: the fake was told to"):
                await task
        assert await after == [expected(chain("after"))]
        await held
        assert batcher.waiting_chains == 0
    assert scorer.calls[1:] == [[chain("fail"), chain("cut")], [chain("after")]]


async def test_a_model_that_forgets_a_chain_has_failed() -> None:
    class Forgetful(FakeScorer):
        def score(self, chains: object) -> list[ChainScores]:
            return []

    async with batching(Forgetful()) as batcher:
        with pytest.raises(ModelError, match="ValueError"):
            await score(batcher, [chain("a")])


async def test_an_idle_model_waits_for_a_full_batch_and_no_longer() -> None:
    scorer = FakeScorer(batch_tokens_max=4, batch_wait_ms_max=PATIENCE_S * 10_000.0)
    async with batching(scorer) as batcher:
        first = await submit(batcher, chain("a"))
        await next_turn()
        assert not scorer.calls
        second = await submit(batcher, chain("b"))
        await asyncio.gather(first, second)
    assert scorer.calls == [[chain("a"), chain("b")]]


async def test_the_wait_for_a_full_batch_ends() -> None:
    async with batching(FakeScorer(batch_wait_ms_max=0.1)) as batcher:
        assert await score(batcher, [chain("a")]) == [expected(chain("a"))]


async def test_closing_finishes_the_batch_at_work_and_fails_the_rest() -> None:
    scorer = FakeScorer()
    batcher = Batcher(scorer)
    held = await hold(batcher, scorer)
    waiting = await submit(batcher, chain("waiting"))
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(UnavailableError):
        await waiting
    scorer.gate.set()
    await closing
    assert await held == [expected(chain("hold"))]
    with pytest.raises(UnavailableError):
        await score(batcher, [chain("late")])


async def test_no_chains_have_no_scores() -> None:
    async with batching(FakeScorer()) as batcher:
        assert await score(batcher, []) == []


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.text("abc", max_size=6), max_size=9), max_size=9),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.1]),
)
def test_every_request_gets_its_own_scores(requests: list[list[str]], bytes_max: int, wait_ms: float) -> None:
    async def run() -> None:
        async with batching(FakeScorer(bytes_max, wait_ms)) as batcher:
            chains = [[chain(text, text) for text in texts] for texts in requests]
            found = await asyncio.gather(*(score(batcher, each) for each in chains))
            assert found == [[expected(each) for each in request] for request in chains]
            assert batcher.waiting_chains == 0

    asyncio.run(run())


async def test_a_model_that_gives_too_few_scores_has_failed() -> None:
    class Short(FakeScorer):
        def score_columns(self, chains: ChainColumns) -> ColumnScores:
            found = super().score_columns(chains)
            return ColumnScores(found.scores[1:], found.faults)

    async with batching(Short()) as batcher:
        with pytest.raises(ModelError, match="it gave 1 scores for 2 steps"):
            await score(batcher, [chain("a", "x", "y")])


async def test_faults_are_those_of_the_requests_own_chains() -> None:
    class Picky(FakeScorer):
        def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
            fault = ChainScores(error=ChainError.INVALID, message="bad")
            return [
                fault if each.problem == "bad" else scores for each, scores in zip(chains, super().score(chains), strict=True)
            ]

    scorer = Picky(batch_tokens_max=8)
    async with batching(scorer) as batcher:
        held = await hold(batcher, scorer)
        one = asyncio.create_task(batcher.score(ChainColumns.of([chain("a"), chain("bad"), chain("b"), chain("bad")])))
        two = asyncio.create_task(batcher.score(ChainColumns.of([chain("bad"), chain("c")])))
        await next_turn()
        scorer.gate.set()
        assert (await one).faults == [ChainFault(at, ChainError.INVALID, "bad") for at in (1, 3)]
        assert (await two).faults == [ChainFault(0, ChainError.INVALID, "bad")]
        assert [np.isnan(scores).tolist() for scores in ((await one).scores, (await two).scores)] == [
            [False, True, False, True],
            [True, False],
        ]
        await held
