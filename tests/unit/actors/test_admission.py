"""What is admitted of which slots, in which order, and what is not admitted any more."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.actors import admission as module
from ramify.scheduler.actors.admission import Admission
from ramify.scheduler.actors.housekeeping import REST_S, SWEEP_S, Housekeeping
from ramify.scheduler.actors.pins import PinnedVerifier
from ramify.scheduler.actors.standings import Standings
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.events import Event, JobCancelled, TreesAdmitted
from ramify.scheduler.forest.ids import root_ids, tree_ids
from ramify.scheduler.plan import Verifier
from ramify.scheduler.slots import SLOTS, in_slots, slot_of
from ramify.store.errors import Fenced
from ramify.store.work import Claim, Work
from ramify.v1 import job_pb2
from tests.unit.actors.house import House, house

LOW, HIGH = range(20), range(20, SLOTS)
PROBLEMS = 50


class Models:
    """Engines that are there, or not."""

    alive = True
    chat_template = ""

    def info(self, model: str) -> ModelInfo | None:
        found = ModelInfo("simulated", "1", "simulated", "", 8192, 16, "Q: {problem}\n", chat_template=self.chat_template)
        return found if self.alive else None

    def missing(self, model: str) -> str:
        return f"no engine with {model} is alive"


class Desk:
    """An admission to no shard."""

    def __init__(self, home: House) -> None:
        self.home, self.models, self.work = home, Models(), Work(home.database, home._clock)
        self.posted: list[Event] = []
        self.now_s = 0.0
        verifier = PinnedVerifier(home.verifier, lambda: self.now_s)
        nothing = Claim("shard:0@a", {})
        standings, now_s = Standings(self.work, lambda: self.now_s), lambda: self.now_s
        self.admission = Admission(self.work, lambda: nothing, self.models, verifier, self.posted.append, standings, now_s)

    def taken(self) -> list[int]:
        """The problems that were admitted since the last look, in their order."""
        found = [index for event in self.posted if isinstance(event, TreesAdmitted) for index in event.problem.tolist()]
        self.posted.clear()
        return found

    async def admit(self, trees_max: int = 1000) -> list[int]:
        await self.admission.admit(trees_max)
        return self.taken()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with house(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}") as home:
        yield Desk(home)


def of(job_id: str, slots: Any, problems: int = PROBLEMS) -> list[int]:
    """The problems of a job whose trees belong to some slots."""
    index = np.arange(problems)
    found: list[int] = index[in_slots(tree_ids(job_id, index), [*slots])].tolist()
    return found


async def test_a_tree_is_admitted_with_its_prompt_and_names(desk: Desk) -> None:
    job_id = await desk.home.submit(3)
    desk.admission.add([*range(SLOTS)])
    await desk.admission.admit(10)
    (event,) = desk.posted
    assert isinstance(event, TreesAdmitted)
    assert event.tree_id.tolist() == tree_ids(job_id, np.arange(3)).tolist()
    assert event.root_id.tolist() == root_ids(3, np.arange(3)).tolist()
    assert bytes(event.tokens.tolist()) == b"Q: problem 0\nQ: problem 1\nQ: problem 2\n"
    assert event.text.tobytes() == b"problem 0problem 1problem 2"
    assert (event.plan.generators, event.plan.checker) == ((("simulated@1", 1.0),), "rule@7")
    assert event.plan.verifiers == (Verifier("prm@7"),)
    assert desk.admission.references[job_id][int(event.tree_id[1])] == "answer to problem 1"
    desk.admission.done(job_id, int(event.tree_id[1]))
    assert len(desk.admission.references[job_id]) == 2


async def test_slots_that_come_later_are_admitted_from_their_beginning(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    job_id = await desk.home.submit(PROBLEMS)
    desk.admission.add([*LOW])
    low, high = of(job_id, LOW), of(job_id, HIGH)
    assert await desk.admit(5) == low[:5]
    desk.admission.add([*HIGH])
    assert await desk.admit(len(low)) == low[5:] + high[:5]
    assert await desk.admit() == high[5:]
    assert await desk.admit() == []
    assert len(desk.admission._cohorts) == 1, "all of both is admitted: they are one"
    other = await desk.home.submit(PROBLEMS, "other")
    assert await desk.admit() == [*range(PROBLEMS)]
    assert set(desk.admission.jobs) == {job_id, other}


async def test_the_oldest_job_comes_first(desk: Desk) -> None:
    await desk.home.submit(3, "first")
    await desk.home.submit(4, "second")
    desk.admission.add([*range(SLOTS)])
    assert await desk.admit(5) == [0, 1, 2, 0, 1]
    assert await desk.admit(0) == []
    assert await desk.admit(5) == [2, 3]


async def test_slots_that_go_are_admitted_no_more(desk: Desk) -> None:
    job_id = await desk.home.submit(PROBLEMS)
    desk.admission.add([*range(SLOTS)])
    first = await desk.admit(10)
    desk.admission.release([*HIGH])
    left = [index for index in of(job_id, LOW) if index not in first]
    assert await desk.admit() == left
    kept = np.fromiter(desk.admission.references[job_id], np.uint64)
    assert (slot_of(kept) < 20).all()
    desk.admission.release([*LOW])
    assert await desk.admit() == []
    desk.admission.add([*HIGH])
    assert await desk.admit() == of(job_id, HIGH), "they have come again"


async def test_slots_that_go_while_their_problems_are_read_are_not_admitted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = await desk.home.submit(PROBLEMS)
    desk.admission.add([*range(SLOTS)])
    waiting = desk.work.waiting

    async def meanwhile(*arguments: Any) -> Any:
        found = await waiting(*arguments)
        desk.admission.release([*HIGH])
        return found

    monkeypatch.setattr(desk.work, "waiting", meanwhile)
    assert await desk.admit() == of(job_id, LOW)


async def test_what_comes_restored_is_not_admitted(desk: Desk) -> None:
    """It may have ended between the read and the turn: admitted then, it would begin anew."""
    job_id = await desk.home.submit(PROBLEMS)
    restored = tree_ids(job_id, np.array([3, 4, 30]))
    desk.admission.add([*range(SLOTS)], restored)
    assert await desk.admit() == [index for index in range(PROBLEMS) if index not in (3, 4, 30)]
    (job,) = await desk.work.open_jobs()
    await desk.admission.read_references(job, [*range(SLOTS)], np.array([3, 4, 30]))
    assert set(restored.tolist()) <= desk.admission.references[job_id].keys(), "but it can be checked"


async def test_a_job_that_has_ended_is_given_up(desk: Desk) -> None:
    job_id = await desk.home.submit(PROBLEMS)
    desk.admission.add([*range(SLOTS)])
    await desk.admit(10)
    await desk.home.jobs.cancel(job_id)
    assert [job.job_id for job in await desk.admission.admit(10)] == [job_id]
    assert desk.posted == [JobCancelled(job_id)]
    assert not desk.admission.jobs
    assert not desk.admission.references
    assert await desk.admission.admit(10) == []


async def test_a_job_waits_until_its_models_can_be_told(desk: Desk) -> None:
    desk.models.alive = False
    job_id = await desk.home.submit(4)
    desk.admission.add([*range(SLOTS)])
    assert await desk.admit() == []
    assert desk.admission.waits == {job_id: ("engines", "no engine with simulated is alive", 4, 0.0)}
    desk.models.alive, desk.home.verifier.gone = True, True
    desk.now_s = 5.0
    assert await desk.admit() == []
    assert desk.admission.waits == {job_id: ("verifier", "prm can't be asked for its revision: connection refused", 4, 5.0)}
    desk.home.verifier.gone = False
    assert await desk.admit() == [], "it was asked just now"
    desk.now_s = 9.0
    assert await desk.admit() == [0, 1, 2, 3]
    assert desk.admission.waits == {}


ALWAYS = job_pb2.CHAT_RULE_ALWAYS


async def test_a_job_whose_prompts_its_model_can_not_take_waits_and_others_go_on(desk: Desk) -> None:
    job_id = await desk.home.submit(4, prompt=job_pb2.Prompt(chat=ALWAYS))
    await desk.home.submit(3, "other")
    desk.admission.add([*range(SLOTS)])
    assert await desk.admit() == [0, 1, 2]
    why = "the job says chat=always, and simulated has no chat template: say auto or never"
    assert desk.admission.waits == {job_id: ("prompt", why, 4, 0.0)}
    assert not (await desk.home.job(job_id)).pins.generator, "it may get one that can"
    desk.now_s, desk.models.chat_template = 5.0, "{{ raise_exception('no') }}"
    assert await desk.admit() == []
    assert desk.admission.waits == {job_id: ("prompt", "the chat template of simulated fails: no", 4, 0.0)}
    desk.models.chat_template = "<{{ messages[0]['content'] }}>"
    await desk.admission.admit(1000)
    (event,) = desk.posted
    assert isinstance(event, TreesAdmitted)
    assert bytes(event.tokens.tolist()).startswith(b"<Q: problem 0\n><Q: problem 1")
    assert event.text.tobytes().startswith(b"problem 0problem 1"), "which is what the verifier sees"
    assert desk.admission.waits == {}


async def test_a_problem_that_the_template_can_not_take_holds_its_job(desk: Desk) -> None:
    desk.models.chat_template = "{{ raise_exception('3!') if '3' in messages[0]['content'] else messages[0]['content'] }}"
    job_id = await desk.home.submit(5, prompt=job_pb2.Prompt(chat=ALWAYS))
    desk.admission.add([*range(SLOTS)])
    assert await desk.admit(3) == [0, 1, 2]
    for desk.now_s in (0.0, 7.0):
        assert await desk.admit() == []
        assert desk.admission.waits == {job_id: ("prompt", "problem 3: the chat template of simulated fails: 3!", 5, 0.0)}


async def test_a_step_prompt_without_room_for_a_step_holds_its_job(desk: Desk) -> None:
    job_id = await desk.home.submit(4, prompt=job_pb2.Prompt(step="# {step}: "), max_step_tokens=5)
    desk.admission.add([*range(SLOTS)])
    assert await desk.admit() == []
    assert desk.admission.waits[job_id].reason.startswith("the step prompt has up to 5 tokens, which leaves nothing")


async def test_a_job_does_not_wait_for_its_models_where_the_shard_is_full(desk: Desk) -> None:
    job_id = await desk.home.submit(9)
    desk.admission.add([*range(SLOTS)])
    assert await desk.admit(4) == [0, 1, 2, 3]
    desk.models.alive = False
    await desk.admit(4)
    assert set(desk.admission.waits) == {job_id}
    desk.models.alive = True
    await desk.admit(0)
    assert desk.admission.waits == {}


# --- housekeeping -------------------------------------------------------------------------------------------------------


async def test_what_has_ended_is_cleared_away_and_deleted_in_time(tmp_path: Path) -> None:
    async with house(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}") as home:
        job_id = await home.submit(30)
        shell = home.start()
        await home.done(job_id)
        trees = await home.outcome(job_id)
        now_s = 0.0
        keeping = Housekeeping(shell._work, lambda: shell.keeper.settled_claim, 1000, now_s=lambda: now_s)
        await keeping.turn()
        assert await home.outcome(job_id) == trees, "from the archives"
        now_s = SWEEP_S
        await keeping.turn()
        assert await home.outcome(job_id) == trees
        home.now_ms += 10_000
        now_s = 2 * SWEEP_S
        await keeping.turn()
        assert (await home.jobs.page(10, None, 0))[0] == [], "its time is over"


async def test_housekeeping_takes_a_small_share_of_the_time_and_outlasts_what_fails() -> None:
    now_s, rests, fails = 0.0, list[float](), [True, False, False]

    class Busy(Housekeeping):
        async def turn(self) -> None:
            nonlocal now_s
            now_s += 3.0
            if fails.pop(0):
                raise Fenced("shard:0@a", [1])

    async def sleep(seconds: float) -> None:
        rests.append(seconds)
        if not fails:
            raise InterruptedError

    keeping = Busy(None, lambda: Claim("a", {}), None, now_s=lambda: now_s, sleep=sleep)  # type: ignore[arg-type]
    with pytest.raises(InterruptedError):
        await keeping.run()
    assert rests == [REST_S, 27.0, 27.0, 27.0]
