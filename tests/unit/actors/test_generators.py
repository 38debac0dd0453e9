"""Several models in one job: each engine samples what its model is to write, and a restart changes nothing of it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.scheduler.actors.homes import Homes
from ramify.scheduler.actors.lanes import Lane
from ramify.scheduler.commands import Generate
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.scheduler.forest.ids import job_key, writers
from ramify.scheduler.placement import NOWHERE, Terms
from ramify.scheduler.plan import Generator
from ramify.scheduler.shard import Shard
from tests.simulation.world import Work, admitted, plan
from tests.unit.actors.house import LIMITS, Engine, House, house
from tests.unit.engines.helpers import MODEL, needs_model

WEIGHTS = {"large": 1.0, "small": 3.0}
INFO = ModelInfo("large", "1", "simulated", "", 8192, 64)


@pytest.fixture
async def home(sqlite_store: str) -> AsyncIterator[House]:
    async with house(sqlite_store) as found:
        found.engines[:] = [simulated("large", 9), simulated("small", 4)]
        yield found


def simulated(model: str, longest: int) -> Engine:
    params = SimulatedParams(time_scale=0, step_lengths="uniform", step_tokens_min=2, step_tokens_max=longest, slots=16)
    return Engine(f"engine with {model}", revision=f"of {model}", model=model, engine=SimulatedEngine(params))


async def wrote(home: House, job_id: str) -> dict[str, set[int]]:
    """The nodes of a job by the model that is to write them."""
    found: dict[str, set[int]] = {model: set() for model in WEIGHTS}
    for index in range((await home.job(job_id)).progress.problems_total):
        nodes = (await home.jobs.tree(job_id, index)).nodes.node_id
        for node, at in zip(nodes.tolist(), writers(nodes, [*WEIGHTS.values()]).tolist(), strict=True):
            found[[*WEIGHTS][at]].add(node)
    return found


async def test_each_engine_samples_the_steps_of_its_model(home: House) -> None:
    job_id = await home.submit(generators=WEIGHTS)
    home.start()
    job = await home.done(job_id)
    assert job.pins.generator == "of large,of small"
    nodes = await wrote(home, job_id)
    assert {engine.model: engine.seeds for engine in home.engines} == nodes
    assert 2 < len(nodes["small"]) / len(nodes["large"]) < 4
    for result in (await home.jobs.results(job_id, 100, -1))[0]:
        assert len(result.generators) == len(result.steps)
        assert set(result.generators) <= {*WEIGHTS}


@pytest.mark.parametrize("snapshots_of", [1, 1_000_000])
async def test_trees_of_several_models_are_the_same_after_crashes(home: House, snapshots_of: int) -> None:
    limits = replace(LIMITS, shard=replace(LIMITS.shard, snapshot_steps_min=snapshots_of))
    calm = await home.submit(8, "calm", generators=WEIGHTS)
    shell = home.start(0, limits)
    progress = (await home.done(calm)).progress
    await home.drain(shell)
    job_id = await home.submit(8, "stormy", generators=WEIGHTS)
    for part in (1, 2):
        for engine in home.engines:
            engine.go_on(0)
        shell = home.start(0, limits)

        async def far(part: int = part) -> bool:
            for engine in home.engines:
                engine.go_on(1)
            return await home.steps(job_id) >= progress.steps * part // 3

        await home.until(far)
        await home.crash(shell)
    for engine in home.engines:
        engine.go_on()
    home.start(0, limits)
    assert (await home.done(job_id)).progress.tokens == progress.tokens
    assert await home.outcome(job_id) == await home.outcome(calm)
    assert {engine.model: engine.seeds for engine in home.engines} == await wrote(home, calm), "and none wrote another's"


async def test_steps_of_a_model_that_is_away_wait_for_it_and_the_others_go_on(home: House) -> None:
    large, small = home.engines
    large.go_on(0)
    job_id = await home.submit(generators=WEIGHTS, policy="best_of_n", keep=None)
    shell = home.start()
    await home.until(lambda: small.sampled > 0 < large.gate._inside)
    large.gone = True
    large.go_on()
    await home.until(lambda: shell._dispatcher.waits)
    assert shell._dispatcher.waits[job_id].reason.startswith("no engine with large is alive (engine with large: EngineError")
    assert not large.sampled
    assert await home.steps(job_id) <= small.sampled
    large.gone = False
    await home.done(job_id)
    assert {engine.model: engine.seeds for engine in home.engines} == await wrote(home, job_id)


async def test_a_job_whose_models_read_other_tokens_waits_and_says_which(tmp_path: Path, home: House) -> None:
    pytest.importorskip("onnxruntime")
    from ramify.scheduler.engines.onnx import OnnxEngine

    if not (MODEL / "model.onnx").is_file():
        pytest.skip("the model tiny24/generator is not there")
    tiny = OnnxEngine(MODEL)
    home.engines[1] = Engine("another", model="small", engine=tiny)
    job_id = await home.submit(generators=WEIGHTS)
    other = await home.submit(2, "other", generators={"large": 1.0})
    shell = home.start()
    await home.done(other)
    await home.until(lambda: shell._admission.waits)
    held = shell._admission.waits[job_id]
    assert held.what == "generators"
    assert held.reason.startswith("large and small have different tokenizers, and a chain's steps are written by all models")
    assert not (await home.job(job_id)).pins.generator
    await home.crash(shell)
    await tiny.close()


@needs_model
async def test_one_model_under_two_names_grows_the_trees_of_one(sqlite_store: str) -> None:
    from ramify.scheduler.engines.onnx import OnnxEngine

    engines = [OnnxEngine(MODEL), OnnxEngine(MODEL)]
    async with house(sqlite_store) as home:
        home.engines[:] = [
            Engine("left", model="simulated", engine=engines[0]),
            Engine("right", model="other", engine=engines[1]),
        ]
        puzzle = "3 {} 7 12|24"
        alone = await home.submit(6, "alone", text=puzzle, max_step_tokens=40)
        home.start()
        await home.done(alone)
        assert not home.engines[1].sampled
        both = await home.submit(6, "both", generators={"simulated": 1.0, "other": 1.0}, text=puzzle, max_step_tokens=40)
        await home.done(both)
        assert home.engines[1].sampled > 10
        assert await home.outcome(both) == await home.outcome(alone)
    for engine in engines:
        await engine.close()


def test_a_tree_stays_on_one_engine_of_each_model() -> None:
    job = replace(plan(n=32, keep=8), generators=tuple(Generator(model, weight) for model, weight in WEIGHTS.items()))
    found = Shard().handle([admitted(Work(job, (0, 1)), (0, 1))])
    large, small = (command for command in found if isinstance(command, Generate))
    homes_told: list[list[int]] = []

    def second(keys: Any, count: Any, home: NDArray[np.int64], fleet: Any) -> NDArray[np.int64]:
        homes_told.append(home.tolist())
        return np.where(home == NOWHERE, 1, home)

    lanes = {model: [Lane(Engine(f"{model} {at}"), job_key(f"{model} {at}"), INFO) for at in (0, 1)] for model in WEIGHTS}
    homes = Homes(second)
    for _ in range(2):
        for model, command in (("large", large), ("small", small)):
            homes.choose(command, lanes[model], Terms())
            homes.sent(command, lanes[model][1])
    assert homes_told == [[NOWHERE, NOWHERE], [NOWHERE, NOWHERE], [1, 1], [1, 1]]
    assert homes.moved_tokens == 0, "what one model's cache has is nothing to another model"
