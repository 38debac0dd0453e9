"""A model in two parts, each in a process of its own."""

import os
from dataclasses import replace
from typing import Any

import pytest

from ramify.scheduler.engines.registry import load_engine
from tests.unit.engines.helpers import PROBLEMS, STEP, Job, collect, encode
from tests.vllm.conftest import SPEC

CPUS = sorted(os.sched_getaffinity(0))


@pytest.mark.skipif(len(CPUS) < 2, reason="each part needs a processor core of its own")
async def test_two_parts_say_what_one_does(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{CPUS[0]}|{CPUS[1]}")
    whole, parted = make(), load_engine(f"{SPEC}&tensor_parallel_size=2")
    try:
        greedy = replace(STEP, temperature=0.0)
        jobs = [Job(encode(whole, problem), 0, greedy) for problem in PROBLEMS]
        assert [row.tokens for row in await collect(parted, jobs)] == [row.tokens for row in await collect(whole, jobs)]
    finally:
        await parted.close()
