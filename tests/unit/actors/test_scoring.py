"""What is sent to the verifier, what its answers become, and what waits while it is away."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from ramify.scheduler.actors import scoring
from ramify.scheduler.actors.scoring import Scoring, Wait
from ramify.scheduler.commands import Chains, Check, Score
from ramify.scheduler.events import AnswersChecked, Event, StepsLost, StepsScored
from ramify.scheduler.plan import Verdict
from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.chains import Chain, ChainError
from ramify.verifier.client import ColumnsScored, VerifierClient
from ramify.verifier.columns import ChainColumns, ChainFault
from ramify.verifier.errors import DeadlineError, InvalidRequestError, OverloadedError, UnavailableError, VerifierError
from ramify.verifier.rules import RULES
from ramify.verifier.server import VerifierServer
from tests.simulation.world import plan

PATIENCE_S = 20
AWAY = UnavailableError("it is away")


def columns(first_tree: int, chains: Sequence[tuple[str, ...]]) -> Chains:
    """Chains of a problem and steps each, of trees with consecutive names."""
    given = ChainColumns.of([Chain(chain[0], chain[1:]) for chain in chains])
    names = np.arange(first_tree, first_tree + len(chains), dtype=np.uint64)
    hint, attempt = np.zeros(len(chains), np.int64), np.zeros(len(chains), np.uint8)
    return Chains(hint, names, names + np.uint64(1000), attempt, given.text, given.text_count, given.length, attempt > 0)


def ask(job: str, *chains: tuple[str, ...], first_tree: int = 0) -> Score:
    return Score(plan(job), columns(first_tree, chains))


def check(job: str, *chains: tuple[str, ...], first_tree: int = 0) -> Check:
    return Check(plan(job, checker="checker"), columns(first_tree, chains))


@dataclass
class Call:
    """One call of the verifier."""

    model: str
    chains: list[Chain]
    last_only: bool
    answer: asyncio.Future[ColumnsScored]


@dataclass
class Desk:
    """A scorer's shell, the verifier that it calls, and what it has posted; the clock goes on by hand."""

    references: dict[str, dict[int, str]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    posted: list[Event] = field(default_factory=list)
    now_s: float = 100.0
    on_post: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.scoring = Scoring(self, self.references, self.post, now_s=lambda: self.now_s, chance=lambda: 1.0)

    def post(self, event: Event) -> None:
        self.posted.append(event)
        self.on_post()

    async def score_columns(self, model: str, chains: ChainColumns, *, last_only: bool, wait_for_ready: bool) -> ColumnsScored:
        assert not wait_for_ready
        call = Call(model, chains.chains(), last_only, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        return await call.answer

    async def pump(self, *commands: Score | Check) -> None:
        for command in commands:
            self.scoring.add(command)
        self.scoring.pump()
        await self.settle()

    async def settle(self) -> None:
        """Lets every task run until it waits for an answer."""
        for _ in range(5):
            turn = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(turn.set_result, None)
            await turn

    async def answer(self, scores: Sequence[float], *faults: ChainFault, call: int = -1) -> None:
        self.calls[call].answer.set_result(ColumnsScored(np.array(scores, np.float32), list(faults), "r"))
        await self.settle()

    async def fail(self, error: VerifierError, call: int = -1) -> None:
        self.calls[call].answer.set_exception(error)
        await self.settle()

    def scored(self) -> list[tuple[list[int], list[float], str]]:
        """Trees, scores and message of each event, which holds nothing else."""
        assert all(isinstance(event, StepsScored) for event in self.posted)
        return [
            (event.tree_id.tolist(), event.scores.tolist(), event.message)
            for event in self.posted
            if isinstance(event, StepsScored)
        ]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    async with asyncio.timeout(PATIENCE_S):
        yield desk
        await desk.scoring.close()


async def test_asks_of_one_model_go_together(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s"), ("p", "s", "t")), ask("b", ("ä", "€"), first_tree=7))
    (call,) = desk.calls
    assert (call.model, call.last_only) == ("verifier", False)
    assert call.chains == [Chain("p", ("s",)), Chain("p", ("s", "t")), Chain("ä", ("€",))]
    assert desk.scoring.busy
    await desk.answer([0.125, 0.25, 0.5, 0.75])
    assert desk.scored() == [([0, 1], [0.125, 0.25, 0.5], ""), ([7], [0.75], "")]
    assert not desk.scoring.busy


async def test_a_call_has_a_bound_and_so_has_their_number(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_MAX", 3)
    two = (("p", "s"), ("p", "s"))
    await desk.pump(*(ask("a", *two, first_tree=10 * index) for index in range(4)), ask("a", ("p", "s"), first_tree=50))
    assert [len(call.chains) for call in desk.calls] == [3, 2]
    await desk.answer([0.5] * 3, call=0)
    assert [trees for trees, _, _ in desk.scored()] == [[0, 1], [50]]
    await desk.pump()
    assert [len(call.chains) for call in desk.calls] == [3, 2, 2]


async def test_whoever_hears_of_a_call_may_send_the_next(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls that end in one turn of the loop must not leave the rest waiting for a third."""
    monkeypatch.setattr(scoring, "BATCH_MAX", 1)
    await desk.pump(*(ask("a", ("p", "s"), first_tree=index) for index in range(4)))
    desk.on_post = desk.scoring.pump
    for call in desk.calls[:2]:
        call.answer.set_result(ColumnsScored(np.array([0.5], np.float32), [], "r"))
    await desk.settle()
    assert len(desk.calls) == 4


async def test_a_bug_does_not_leave_chains_waiting(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await desk.pump(ask("a", ("p", "s")))
    desk.calls[0].answer.set_exception(KeyError("a bug"))
    await desk.settle()
    assert isinstance(desk.posted[0], StepsLost)
    assert "KeyError: 'a bug'" in caplog.text
    assert not desk.scoring.busy


async def test_a_fault_is_of_the_ask_that_has_the_chain(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")), ask("b", ("p", "s"), ("q", "s", "t"), first_tree=5))
    fault = ChainFault(2, ChainError.TOO_LONG, "too long")
    await desk.answer([0.5, 0.5, np.nan, np.nan], fault)
    first, second = desk.scored()
    assert first == ([0], [0.5], "")
    assert second[2] == "not scored by verifier: too long"
    assert np.isnan(second[1]).tolist() == [False, True, True]


async def test_checks_ask_for_last_scores_with_references(desk: Desk) -> None:
    desk.references["b"] = {6: "42"}
    await desk.pump(check("a", ("p", "s"), ("q", "s")), check("b", ("r", "s"), ("t", "s"), first_tree=5), ask("b", ("r", "s")))
    checks, scores = desk.calls
    assert (checks.model, checks.last_only, scores.last_only) == ("checker", True, False)
    assert [chain.reference for chain in checks.chains] == ["", "", "", "42"]
    assert [chain.reference for chain in scores.chains] == [""]
    await desk.answer([1.0, 0.0, np.nan, 0.5], ChainFault(2, ChainError.INVALID, "no"), call=0)
    verdicts = [(event.tree_id.tolist(), event.verdict.tolist()) for event in desk.posted if isinstance(event, AnswersChecked)]
    assert verdicts == [([0, 1], [Verdict.CORRECT, Verdict.WRONG]), ([5, 6], [Verdict.UNKNOWN, Verdict.CORRECT])]


async def test_what_the_verifier_refuses_is_lost(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")), check("a", ("p", "s"), first_tree=3))
    await desk.fail(InvalidRequestError("what is that"), call=0)
    await desk.fail(InvalidRequestError("what is that"), call=1)
    lost, checked = desk.posted
    assert isinstance(lost, StepsLost)
    assert (lost.tree_id.tolist(), lost.message) == ([0], "not scored by verifier: what is that")
    assert isinstance(checked, AnswersChecked)
    assert checked.verdict.tolist() == [Verdict.UNKNOWN]
    assert not desk.scoring.busy


async def test_pauses_double_up_to_a_bound_and_end_with_the_absence(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")))
    for pause_s in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0):
        calls = len(desk.calls)
        await desk.fail(AWAY)
        desk.now_s += pause_s * 0.999
        await desk.pump()
        assert len(desk.calls) == calls
        desk.now_s += pause_s * 0.002
        await desk.pump()
        assert len(desk.calls) == calls + 1
    await desk.answer([0.5])
    assert desk.scored() == [([0], [0.5], "")]
    assert desk.scoring.waits == {}
    await desk.pump(ask("a", ("p", "s")))
    await desk.fail(AWAY)
    desk.now_s += 0.25
    await desk.pump()
    assert len(desk.calls) == 10


async def test_the_advice_of_an_overloaded_verifier_is_heeded(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")))
    await desk.fail(OverloadedError("it is full", 3000))
    desk.now_s += 2.9
    await desk.pump()
    assert len(desk.calls) == 1
    desk.now_s += 0.1
    await desk.pump()
    assert len(desk.calls) == 2


async def test_one_call_at_a_time_tries_whether_a_model_is_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_MAX", 1)
    await desk.pump(*(ask("a", ("p", "s"), first_tree=index) for index in range(4)))
    await desk.fail(AWAY, call=0)
    await desk.fail(DeadlineError("too late"), call=1)
    desk.now_s += 0.25
    await desk.pump()
    assert len(desk.calls) == 3
    await desk.answer([0.5])
    await desk.pump()
    assert len(desk.calls) == 5


async def test_other_models_do_not_wait(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")))
    await desk.fail(OverloadedError("it is full"))
    await desk.pump(ask("a", ("p", "s"), first_tree=1), check("a", ("p", "s")))
    assert [call.model for call in desk.calls] == ["verifier", "checker"]


async def test_waits_tell_what_waits_and_why(desk: Desk) -> None:
    assert desk.scoring.waits == {}
    await desk.pump(ask("a", ("p", "s"), ("p", "s")))
    assert desk.scoring.waits == {}
    desk.now_s = 110.0
    await desk.fail(AWAY)
    desk.now_s = 110.1
    await desk.pump(ask("b", ("p", "s"), first_tree=3), ask("a", ("p", "s"), first_tree=4), check("c", ("p", "s")))
    assert desk.scoring.waits == {"a": Wait("it is away", 3, 110.0), "b": Wait("it is away", 1, 110.1)}
    desk.now_s = 111.0
    await desk.pump()
    assert desk.calls[-1].model == "verifier"
    assert desk.scoring.waits["a"] == Wait("it is away", 3, 110.0)
    await desk.answer([0.5] * 4)
    assert desk.scoring.waits == {}


async def test_who_waits_for_too_long_is_lost(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")))
    await desk.fail(AWAY)
    desk.now_s += 1.0
    desk.scoring.add(ask("b", ("p", "s"), first_tree=1))
    await desk.pump()
    desk.now_s += scoring.ABSENCE_S_MAX - 0.5
    await desk.fail(UnavailableError("it is still away"))
    (lost,) = desk.posted
    assert isinstance(lost, StepsLost)
    assert (lost.tree_id.tolist(), lost.message) == ([0], "not scored by verifier: it is still away")
    assert list(desk.scoring.waits) == ["b"]


async def test_closing_gives_up_what_is_under_way(desk: Desk) -> None:
    await desk.pump(ask("a", ("p", "s")))
    await desk.scoring.close()
    assert desk.calls[0].answer.cancelled()
    assert desk.posted == []


@asynccontextmanager
async def verifier() -> AsyncIterator[VerifierClient]:
    server = VerifierServer()
    address = await server.start("127.0.0.1:0")
    try:
        await server.serve([SimulatedScorer("verifier"), RuleScorer(RULES["countdown"])])
        async with VerifierClient(address) as client:
            yield client
    finally:
        await server.stop(drain_s=0)


async def test_through_a_real_verifier() -> None:
    async with asyncio.timeout(PATIENCE_S), verifier() as client:
        posted = asyncio.Queue[Event]()
        shell = Scoring(client, {}, posted.put_nowait)
        shell.add(ask("a", ("p", "s"), ("p", "s", "t")))
        shell.pump()
        scored = await posted.get()
        assert isinstance(scored, StepsScored)
        expected = SimulatedScorer("verifier").score_columns(ChainColumns.of([Chain("p", ("s",)), Chain("p", ("s", "t"))]))
        assert scored.scores.tolist() == expected.scores.tolist()
        solved = columns(0, [("4 5 6 10>24", "10-4=6:5 6 6\n", "5*6=30:6 30\n", "30-6=24:24"), ("4 5 6 10>24", "10-4=6:5 6 6\n")])
        shell.add(Check(plan("a", checker="countdown"), solved))
        shell.pump()
        checked = await posted.get()
        assert isinstance(checked, AnswersChecked)
        assert checked.verdict.tolist() == [Verdict.CORRECT, Verdict.WRONG]
        await shell.close()
