"""Batches to put in, and rows to compare, bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ramify.scheduler.engines.base import Engine, Finish, StepBatch, StepParams, StepResults
from ramify.scheduler.engines.sampling import uniform

MODEL = Path(__file__).parents[3] / "infra" / "models" / "tiny24" / "generator"
needs_model = pytest.mark.skipif(not (MODEL / "model.onnx").is_file(), reason="the model tiny24/generator is not there")

# "3 4 7 12|24" and so on: problems as tiny24 knows them, in characters that any tokenizer has.
PROBLEMS = ("3 4 7 12|24\n", "1 2 3 4|24\n", "2 5 5 11|24\n", "1 1 11 13|24\n", "6 6 6 6|24\n")
STEP = StepParams(temperature=0.9, top_p=1.0, max_step_tokens=40, delimiter="\n")


class Row(NamedTuple):
    finish: Finish
    logprob_bits: bytes
    tokens: tuple[int, ...]
    cost: int
    text: bytes


@dataclass(frozen=True)
class Job:
    """Rows in the plainest form: one chain, seed and params each."""

    chain: tuple[int, ...]
    seed: int
    params: StepParams = STEP


def encode(engine: Engine, text: str) -> tuple[int, ...]:
    if not engine.info.tokenizer_json:
        return tuple(text.encode())
    from tokenizers import Tokenizer

    return tuple(Tokenizer.from_str(engine.info.tokenizer_json).encode(text).ids)


def batch_of(jobs: Sequence[Job]) -> StepBatch:
    """Neighbours with the same chain and params make a group."""
    groups: list[Job] = []
    group = []
    for job in jobs:
        if not groups or (groups[-1].chain, groups[-1].params) != (job.chain, job.params):
            groups.append(job)
        group.append(len(groups) - 1)
    params = list(dict.fromkeys(job.params for job in groups))
    return StepBatch(
        tokens=np.array([token for job in groups for token in job.chain], np.int32),
        offsets=np.cumsum([0, *(len(job.chain) for job in groups)], dtype=np.int64),
        params=tuple(params),
        group_params=np.array([params.index(job.params) for job in groups], np.int32),
        group=np.array(group, np.int32),
        code=uniform(np.array([job.seed for job in jobs], np.uint64), np.zeros(len(jobs), np.int64)),
        seed=np.array([job.seed for job in jobs], np.uint64),
    )


def rows_of(results: StepResults) -> dict[int, Row]:
    tokens = np.split(results.tokens, np.cumsum(results.token_count)[:-1])
    texts = np.split(results.text, np.cumsum(results.text_count)[:-1])
    assert len(results.tokens) == results.token_count.sum()
    assert len(results.text) == results.text_count.sum()
    return {
        int(row): Row(
            finish=Finish(int(results.finish[at])),
            logprob_bits=results.logprob[at].tobytes(),
            tokens=tuple(tokens[at].tolist()),
            cost=int(results.token_cost[at]),
            text=texts[at].tobytes(),
        )
        for at, row in enumerate(results.row)
    }


async def collect(engine: Engine, jobs: Sequence[Job]) -> list[Row]:
    """The jobs' rows in order, each of which must have come exactly once."""
    rows: dict[int, Row] = {}
    async for results in engine.generate(batch_of(jobs)):
        found = rows_of(results)
        assert len(found) == len(results.row)
        assert not rows.keys() & found.keys()
        rows |= found
    assert sorted(rows) == list(range(len(jobs)))
    return [rows[at] for at in range(len(jobs))]


async def search(engine: Engine, depth: int, seed: int = 0, width: int = 4) -> list[Row]:
    """Every row of a search that goes on with the first open continuation of each chain."""
    chains, seen = [encode(engine, problem) for problem in PROBLEMS], []
    for level in range(depth):
        jobs = [Job(chain, seed + 1000 * level + width * at + k) for at, chain in enumerate(chains) for k in range(width)]
        rows = await collect(engine, jobs)
        seen += rows
        going: dict[tuple[int, ...], tuple[int, ...]] = {}
        for job, row in zip(jobs, rows, strict=True):
            if row.finish in (Finish.STEP, Finish.STEP_CUT):
                going.setdefault(job.chain, job.chain + row.tokens)
        chains = list(going.values())
    return seen
