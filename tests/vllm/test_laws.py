"""The laws of every engine, with vLLM. Those that hold bit by bit elsewhere are said here as far as they hold with it.

Not among them: that a row does not depend on its batch, nor on the number of slots (log-probabilities may differ in their last
bits, and a token may where two are as likely but for those); and that a delimiter of several tokens is refused (vLLM takes it).
"""

import asyncio
from dataclasses import replace

import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.errors import EngineError
from tests.unit.engines import test_conformance as laws
from tests.unit.engines.helpers import STEP, Row, batch_of, collect
from tests.unit.engines.test_conformance import (
    Make,
    jobs_of,
    test_a_cancelled_reader_frees_its_slots,
    test_a_closed_engine_fails_open_and_later_calls,
    test_a_full_context_cuts_the_chain,
    test_an_empty_batch_yields_nothing,
    test_an_engine_that_dies_fails_all_calls,
    test_chains_end,
    test_every_step_that_was_sampled_is_counted,
    test_params_are_per_group,
    test_rows_are_well_formed,
    test_seeds_make_a_difference,
    test_waiting_rows_are_bounded,
    test_without_a_delimiter_a_step_goes_on_to_its_longest,
)

__all__ = [
    "test_a_cancelled_reader_frees_its_slots",
    "test_a_closed_engine_fails_open_and_later_calls",
    "test_a_full_context_cuts_the_chain",
    "test_an_empty_batch_yields_nothing",
    "test_an_engine_that_dies_fails_all_calls",
    "test_chains_end",
    "test_every_step_that_was_sampled_is_counted",
    "test_params_are_per_group",
    "test_rows_are_well_formed",
    "test_seeds_make_a_difference",
    "test_waiting_rows_are_bounded",
    "test_without_a_delimiter_a_step_goes_on_to_its_longest",
]


def without_bits(rows: list[Row]) -> list[Row]:
    return [row._replace(logprob_bits=b"") for row in rows]


async def test_calls_share_an_engine(make: Make) -> None:
    engine = make()
    jobs = jobs_of(engine)
    halves = await asyncio.gather(collect(engine, jobs[:13]), collect(engine, jobs[13:]))
    assert [len(half) for half in halves] == [13, len(jobs) - 13]


async def test_greedy_tokens_do_not_depend_on_the_batch(make: Make) -> None:
    engine = make()
    jobs = [replace(job, params=replace(STEP, temperature=0.0)) for job in jobs_of(engine, rows=2)]
    together = without_bits(await collect(engine, jobs))
    assert [without_bits(await collect(engine, [job]))[0] for job in jobs] == together


async def test_an_iterator_closed_early_frees_its_slots(make: Make) -> None:
    engine = make()
    jobs = jobs_of(engine, rows=40)
    abandoned = engine.generate(batch_of(jobs))
    await anext(abandoned)
    await abandoned.aclose()
    await collect(engine, jobs[:3])
    stats = engine.stats()
    assert (stats.rows_running, stats.rows_waiting) == (0, 0)


async def test_a_step_is_cut_at_its_longest(make: Make) -> None:
    engine = make()
    rows = await collect(engine, [replace(job, params=replace(STEP, max_step_tokens=3)) for job in jobs_of(engine)])
    cut = [row for row in rows if row.finish == Finish.STEP_CUT]
    assert cut
    assert all(len(row.tokens) == row.cost == 3 for row in cut)


@pytest.mark.parametrize("name", sorted({*laws.BAD} - {"delimiter of several tokens"}))
async def test_a_malformed_batch_is_refused(make: Make, name: str) -> None:
    engine = make()
    jobs = jobs_of(engine, rows=2)
    with pytest.raises(EngineError):
        await anext(engine.generate(laws.BAD[name](batch_of(jobs))))
    assert len(await collect(engine, jobs)) == len(jobs)
