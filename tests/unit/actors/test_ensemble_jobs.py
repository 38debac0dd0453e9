"""Jobs with several verifiers, from end to end in one process: the scores of their trees, whoever is away or dies meanwhile."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.engines.base import Finish
from ramify.v1 import job_pb2
from tests.unit.actors.house import LIMITS, House, house, score_of

MAX_STEPS = 5
VERIFIERS = [
    job_pb2.Verifier(model="prm-b", weight=3, temperature=2.0, when=job_pb2.WHEN_RULE_ALWAYS),
    job_pb2.Verifier(model="prm-a", weight=1, temperature=1.0, when=job_pb2.WHEN_RULE_WAY),
    job_pb2.Verifier(model="orm", weight=2, temperature=0.5, when=job_pb2.WHEN_RULE_END),
]
OTHERS = {"prm-a": "8", "orm": "9"}  # revisions


@pytest.fixture
async def home(sqlite_store: str) -> AsyncIterator[House]:
    async with house(sqlite_store) as found:
        found.verifier.of |= OTHERS
        yield found


def expected(step: str, *, ended: bool) -> float:
    """A step's score, as the documentation tells it."""
    scores, total = 0.0, 0.0
    for each in VERIFIERS:
        if each.when == job_pb2.WHEN_RULE_ALWAYS or (each.when == job_pb2.WHEN_RULE_END) == ended:
            score = score_of(each.model, step)
            odds = (score / (1 - score)) ** (1 / each.temperature)
            scores, total = scores + each.weight * odds / (1 + odds), total + each.weight
    return scores / total


@pytest.mark.parametrize("policy", ["beam", "best_of_n"])
async def test_each_step_is_judged_by_its_models(home: House, policy: str) -> None:
    job_id = await home.submit(6, verifiers=VERIFIERS, policy=policy, keep=4 if policy == "beam" else None, max_steps=MAX_STEPS)
    home.start()
    job = await home.done(job_id)
    assert job.pins.verifier == "7,8,9"
    lasts = 0
    for index in range(6):
        nodes = (await home.jobs.tree(job_id, index)).nodes
        ends = np.cumsum(nodes.text_count)
        for at, (end, size) in enumerate(zip(ends.tolist(), nodes.text_count.tolist(), strict=True)):
            ended = bool(nodes.finish[at] in (Finish.END, Finish.CONTEXT) or nodes.depth[at] == MAX_STEPS)
            assert nodes.score[at] == pytest.approx(
                expected(nodes.text[end - size : end].tobytes().decode(), ended=ended), abs=1e-6
            )
            lasts += ended
    assert lasts > 6


def waits(shell: Shell) -> bool:
    """Whether chains wait for a model that is away."""
    return bool(shell._scoring.waits)


async def has_steps(home: House, job_id: str) -> bool:
    """Whether any is committed."""
    return await home.steps(job_id) > 0


async def test_a_model_that_is_away_holds_what_it_is_to_judge_and_no_other_is_asked_again(home: House) -> None:
    calm = await home.submit(6, "calm", verifiers=VERIFIERS)
    shell = home.start()
    await home.done(calm)
    home.verifier.scored.clear()
    home.verifier.away.add("orm")
    job_id = await home.submit(6, "held", verifiers=VERIFIERS)
    await home.until(lambda: any(wait.reason == "orm: connection refused" for wait in shell._scoring.waits.values()))
    await home.until(lambda: not shell._scoring._open)
    home.verifier.away.clear()
    await home.done(job_id)
    assert await home.outcome(job_id) == await home.outcome(calm)
    names = {each.model for each in VERIFIERS}
    assert {times for (model, _), times in home.verifier.scored.items() if model in names} == {1}


@pytest.mark.parametrize("snapshots_of", [1, 1_000_000])
async def test_scores_are_the_same_after_crashes(home: House, snapshots_of: int) -> None:
    limits = replace(LIMITS, shard=replace(LIMITS.shard, snapshot_steps_min=snapshots_of))
    calm = await home.submit(8, "calm", verifiers=VERIFIERS)
    shell = home.start(0, limits)
    await home.done(calm)
    await home.drain(shell)
    job_id = await home.submit(8, "stormy", verifiers=VERIFIERS)
    for away in ("orm", "prm-a"):
        home.verifier.away = {away}
        shell = home.start(0, limits)
        await home.until(partial(waits, shell))
        await home.until(partial(has_steps, home, job_id))
        await home.crash(shell)
    home.verifier.away.clear()
    home.start(0, limits)
    await home.done(job_id)
    assert await home.outcome(job_id) == await home.outcome(calm)
