"""Step prompts: every step begins with them, no engine samples them, and no restart changes them."""

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ramify.scheduler.actors.step_prompts import StepPrompts
from ramify.scheduler.engines.base import Finish, StepParams
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.v1 import job_pb2
from tests.unit.actors.house import LIMITS, Engine, House, house
from tests.unit.engines.helpers import MODEL, STEP, Job, Row, batch_of, collect, encode, needs_model, rows_of

STEPPED = job_pb2.Prompt(step="{step}> ")


@pytest.fixture
async def home(sqlite_store: str) -> AsyncIterator[House]:
    async with house(sqlite_store) as found:
        yield found


async def with_prompts(engine: SimulatedEngine, jobs: list[Job], begins: list[str]) -> list[Row]:
    """The rows of some jobs, each of which is a group of its own and begins with a text."""
    batch = batch_of(jobs)
    prompts = StepPrompts.of(batch, begins, "")
    rows: dict[int, Row] = {}
    async for results in engine.generate(prompts.before(batch)):
        rows |= rows_of(prompts.after(results))
    return [rows[at] for at in range(len(jobs))]


async def test_steps_begin_with_their_prompts_and_are_no_longer_for_it() -> None:
    engine = SimulatedEngine(SimulatedParams(time_scale=0, step_tokens_min=3, step_tokens_max=9, context_tokens_max=50))
    begins = ["", "1> ", "12> ", "step> ", "x"]
    chains = [tuple(f"chain {at}".encode()) for at in range(5)]
    jobs = [Job(chain, at, replace(STEP, max_step_tokens=6 + at % 2)) for at, chain in enumerate(chains)]
    rows = await with_prompts(engine, jobs, begins)
    for row, job, begin in zip(rows, jobs, begins, strict=True):
        own = replace(job.params, max_step_tokens=job.params.max_step_tokens - len(begin))
        (alone,) = await collect(engine, [Job((*job.chain, *begin.encode()), job.seed, own)])
        assert (row.finish, row.cost, row.logprob_bits) == (alone.finish, alone.cost, alone.logprob_bits)
        assert bytes(row.tokens) == row.text == begin.encode() + alone.text
        assert len(row.tokens) <= job.params.max_step_tokens
    await engine.close()


async def test_a_step_that_has_no_room_in_the_context_stays_empty() -> None:
    engine = SimulatedEngine(SimulatedParams(time_scale=0, context_tokens_max=20))
    (full, last) = await with_prompts(engine, [Job((7,) * 19, 1), Job((7,) * 15, 2)], ["1> ", "1> "])
    assert (full.finish, full.tokens, full.text) == (Finish.CONTEXT, (), b"")
    assert bytes(last.tokens).startswith(b"1> ")
    assert len(last.tokens) <= 5
    await engine.close()


def test_a_character_that_the_chain_has_begun_is_told_with_the_prompt() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chain = tuple(made.encode("né").ids)
    prompts = StepPrompts.of(batch_of([Job(chain[:2], 1), Job(chain, 2)]), ["# ", "# "], made.to_str())
    assert [text.tobytes().decode() for text in prompts.texts] == ["\ufffd# ", "# "]


@pytest.mark.parametrize("snapshots_of", [1, 1_000_000])
async def test_trees_with_step_prompts_are_the_same_after_crashes(home: House, snapshots_of: int) -> None:
    limits = replace(LIMITS, shard=replace(LIMITS.shard, snapshot_steps_min=snapshots_of))
    calm = await home.submit(8, "calm", STEPPED)
    shell = home.start(0, limits)
    progress = (await home.done(calm)).progress
    await home.drain(shell)
    for (_, _, counts, _), _, texts, *_ in await home.outcome(calm):
        assert counts == [len(text) for text in texts]
        assert all(text[:3] in (b"1> ", b"2> ", b"3> ", b"4> ", b"5> ") for text in texts)
    job_id = await home.submit(8, "stormy", STEPPED)
    for part in (1, 2):
        home.engines[0].go_on(0)
        shell = home.start(0, limits)

        async def far(part: int = part) -> bool:
            home.engines[0].go_on(1)
            return await home.steps(job_id) >= progress.steps * part // 3

        await home.until(far)
        await home.crash(shell)
    home.engines[0].go_on()
    home.start(0, limits)
    assert (await home.done(job_id)).progress.tokens == progress.tokens
    assert await home.outcome(job_id) == await home.outcome(calm)


async def test_no_budget_is_overrun(home: House) -> None:
    job_id = await home.submit(6, prompt=job_pb2.Prompt(step="## {step}: "), max_step_tokens=12)
    shell = home.start()
    await home.done(job_id)
    for (_, _, counts, _), *_ in await home.outcome(job_id):
        assert 7 < max(counts) <= 12
    await home.crash(shell)


@needs_model
async def test_a_greedy_chain_is_what_an_engine_writes_that_is_fed_by_hand(sqlite_store: str) -> None:
    from ramify.scheduler.engines.onnx import OnnxEngine

    onnx = OnnxEngine(MODEL)
    async with house(sqlite_store) as home:
        home.engines[:] = [Engine("tiny", engine=onnx)]
        job_id = await home.submit(3, prompt=STEPPED, text="3 {} 7 12|24", n=1, keep=1, temperature=0, max_step_tokens=40)
        home.start()
        await home.done(job_id)
        found = [(await home.jobs.tree(job_id, index)).nodes for index in range(3)]
    for index, nodes in enumerate(found):
        chain, wanted, finish = encode(onnx, f"3 {index} 7 12|24\n"), list[tuple[tuple[int, ...], bytes]](), Finish.STEP
        while finish in (Finish.STEP, Finish.STEP_CUT) and len(wanted) < 5:
            begin = f"{len(wanted) + 1}> "
            chain += encode(onnx, begin)
            own = StepParams(0.0, 1.0, 40 - len(begin), "\n")
            (row,) = await collect(onnx, [Job(chain, 1, own)])
            chain, finish = chain + row.tokens, row.finish
            wanted.append((encode(onnx, begin) + row.tokens, begin.encode() + row.text))
        order = np.argsort(nodes.depth)
        ends, text_ends = np.cumsum(nodes.token_count), np.cumsum(nodes.text_count)
        assert wanted == [
            (
                tuple(nodes.tokens[ends[at] - nodes.token_count[at] : ends[at]].tolist()),
                nodes.text[text_ends[at] - nodes.text_count[at] : text_ends[at]].tobytes(),
            )
            for at in order
        ]
    await onnx.close()
