"""Several models write the steps of one job: which writes which is a function of the node and the weights."""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.commands import Commit, Generate, Score
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.ids import uniforms, writers
from ramify.scheduler.journal import without
from ramify.scheduler.plan import Generator, JobPlan
from ramify.scheduler.shard import Shard
from tests.simulation.world import Work, admitted, plan
from tests.unit.core.scripts import only, sampled, scored, tick

NODES = np.random.default_rng(3).integers(2**64, size=40_000, dtype=np.uint64)


@pytest.mark.parametrize("weights", [(1.0,), (3.0, 1.0), (1.0, 1.0, 2.0), (1e-6, 1.0), (0.1,) * 8])
def test_every_model_has_its_share(weights: tuple[float, ...]) -> None:
    at = writers(NODES, weights)
    wanted = np.array(weights) / sum(weights)
    assert np.abs(np.bincount(at, minlength=len(weights)) / len(NODES) - wanted).max() < 0.01
    assert (at == writers(NODES, [7 * weight for weight in weights])).all(), "weights are relative"
    assert (at[::-1] == writers(NODES[::-1], weights)).all(), "each node on its own"


def test_who_writes_says_nothing_of_what_is_written() -> None:
    """A step's code and its sampling come from the node's id too."""
    at = writers(NODES, (1.0, 1.0))
    for salt in (0, 1, 2, 0xC0DE):
        assert abs(np.corrcoef(at, uniforms(NODES, salt))[0, 1]) < 0.02


def two(**given: Any) -> JobPlan:
    return replace(plan(**given), generators=(Generator("a@1", 3.0), Generator("b@2", 1.0)))


def test_children_of_a_node_are_divided_among_the_models() -> None:
    job = two(n=64, keep=8)
    commands = Shard().handle([admitted(Work(job, (0, 1)), (0, 1))])
    assert [each.generator for each in commands if isinstance(each, Generate)] == ["a@1", "b@2"]
    for at, command in enumerate(commands):
        assert isinstance(command, Generate)
        assert (job.writers(command.node_id) == at).all()
        assert len(command.offsets) == 3, "both trees' roots"
        assert command.numbers.tolist() == [1, 1]
    rows = [len(command.hint) for command in commands if isinstance(command, Generate)]
    assert sum(rows) == 128
    assert 10 < rows[1] < 54


def test_a_command_less_some_rows_keeps_its_model_and_the_numbers_of_its_steps() -> None:
    job = two(policy="best_of_n", n=16)
    shard = Shard()
    first = [each for each in shard.handle([admitted(Work(job, (0,)), (0,))]) if isinstance(each, Generate)]
    texts = [sampled(each, [f"{node}\n" for node in each.node_id], Finish.STEP) for each in first]
    for command in chain.from_iterable(shard.handle([event]) for event in texts):
        assert isinstance(command, Generate)
        assert set(command.numbers.tolist()) == {2}
        mixed = replace(command, depth=np.arange(len(command.hint), dtype=np.int16))
        rest = without(mixed, np.arange(len(command.hint)) % 2 == 0)
        assert rest.generator == command.generator
        assert rest.numbers.tolist() == rest.depth.tolist() == [*range(1, len(command.hint), 2)]


def test_a_result_names_who_wrote_its_steps() -> None:
    job, problems = two(policy="best_of_n", n=8, max_steps=3, cut="answer"), (0, 1, 2, 3)
    shard = Shard()
    found = shard.handle([admitted(Work(job, problems), problems)])
    parent_of: dict[int, int] = {}
    for _ in range(3):
        commands = [each for each in found if isinstance(each, Generate)]
        for each in commands:
            parent_of |= dict(zip(each.node_id.tolist(), each.parent_id[each.group].tolist(), strict=True))
        texts = [[f"{node}\n" for node in each.node_id.tolist()] for each in commands]
        found = shard.handle([sampled(each, said, Finish.STEP) for each, said in zip(commands, texts, strict=True)])
    chains = [each.chains for each in found if isinstance(each, Score)]
    shard.handle([scored(each, np.linspace(0, 1, len(each.length)).tolist()) for each in chains])
    (delta,) = only(tick(shard, 2_000_000), Commit).jobs
    for result in delta.results:
        path = [result.answer_node_id]
        while parent_of[path[0]] in parent_of:
            path.insert(0, parent_of[path[0]])
        assert len(path) == len(result.steps) == 3
        assert result.generators == ["ab"[at] for at in job.writers(np.array(path, np.uint64))]
    assert {name for result in delta.results for name in result.generators} == {"a", "b"}
