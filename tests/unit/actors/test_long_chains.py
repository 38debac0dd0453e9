"""Thoughts of tens of thousands of tokens, and prompts that no context holds."""

from collections.abc import AsyncIterator

import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.v1 import job_pb2
from tests.unit.actors.house import Engine, House, house

CONTEXT = 65_536


@pytest.fixture
async def home(sqlite_store: str) -> AsyncIterator[House]:
    async with house(sqlite_store) as found:
        params = SimulatedParams(time_scale=0, context_tokens_max=CONTEXT, end_probability=0.0)
        found.engines[:] = [Engine("long", engine=SimulatedEngine(params))]
        yield found


async def test_a_chain_of_many_steps_by_count_grows_to_the_end_of_the_context(home: House) -> None:
    """Sixteen chains in steps of 256 tokens take three seconds; what is quadratic in a chain's steps takes longer than it may."""
    steps = job_pb2.StepBoundary(tokens=256)
    job_id = await home.submit(4, policy="best_of_n", n=4, keep=None, step=steps, max_steps=300, cut=job_pb2.CUT_RULE_ANSWER)
    home.start()
    await home.done(job_id)
    for (_, _, counts, finishes), _, texts, answer, *_ in await home.outcome(job_id):
        assert len(counts) == 4 * 256
        assert [finishes.count(finish) for finish in (Finish.STEP_CUT, Finish.CONTEXT)] == [4 * 255, 4]
        assert max(counts) == 256
        assert sum(map(len, texts)) == sum(counts) == 4 * (CONTEXT - len("problem 0"))
        assert len("".join(answer)) == CONTEXT - len("problem 0")
    (result, *_), _ = await home.jobs.results(job_id, 10, -1)
    cut = f"the answer was cut at {CONTEXT:,} tokens, the model's context is {CONTEXT:,}"
    assert result.note.startswith(cut), "steps that end by their tokens end as they should"


async def test_a_full_context_and_a_prompt_that_is_too_long_are_told(home: House) -> None:
    job_id = await home.submit(2, step=job_pb2.StepBoundary(tokens=8192), max_steps=20, max_step_tokens=8192)
    long = await home.submit(2, "long", text="{}" + "x" * 70_000)
    home.start()
    for name, message in (
        (job_id, "chains were cut at up to 65,536 tokens, the model's context is 65,536: lower max_steps"),
        (long, "the prompt has 70,001 tokens, the model's context is 65,536: give the model a longer context"),
    ):
        await home.done(name)
        found, _ = await home.jobs.results(name, 10, -1)
        assert [result.outcome for result in found] == [job_pb2.OUTCOME_FAILED] * 2
        assert all(result.message.startswith(message) for result in found), found[0].message
