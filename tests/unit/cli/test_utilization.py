"""`ramify bench utilization`: its figures, where they are known beforehand."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from ramify.cli.bench import app
from ramify.cli.bench._virtual import VirtualLoop
from ramify.cli.bench.utilization import ALGORITHMS, Drive, Here, at_random, figures_of
from ramify.scheduler.actors.homes import Place
from ramify.scheduler.engines.simulated import SimulatedParams
from ramify.scheduler.placement import place
from ramify.scheduler.policies.knobs import Knobs

PROBLEMS = 12


def measured(engines: int, choose: Place, algorithm: str = "beam") -> dict[str, float]:
    fleet = [Here(f"engine {index}", SimulatedParams(slots=16)) for index in range(engines)]
    drive = Drive(fleet, choose, Knobs.fill(ALGORITHMS[algorithm]))
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return figures_of(fleet, runner.run(drive.run(PROBLEMS, seed=0)), PROBLEMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_engine_has_the_best_cache(algorithm: str) -> None:
    figures = measured(1, place, algorithm)
    assert (figures["tokens_prefilled_again"], figures["hit_gap"], figures["lookup_hit_gap"]) == (0, 0, 0)
    assert figures["hit_rate"] == figures["best_hit_rate"] > 0.9
    assert 0.7 < figures["busy"] < 1


def test_trees_that_are_scattered_are_computed_again() -> None:
    ours, scattered = measured(4, place), measured(4, at_random(0))
    assert ours["tokens_sampled"] == scattered["tokens_sampled"]
    assert ours["tokens_prefilled_again"] < 0.2 * scattered["tokens_prefilled_again"]
    assert ours["lookup_hit_gap"] < 0.05 < 0.3 < scattered["lookup_hit_gap"]
    for figures in (ours, scattered):
        needed = figures["tokens_prefilled"] - figures["tokens_prefilled_again"]
        assert figures["best_hit_rate"] - figures["hit_rate"] == pytest.approx(figures["hit_gap"], abs=2e-4)
        assert figures["hit_rate"] < figures["best_hit_rate"]
        assert needed > PROBLEMS * 400


def test_what_is_told_in_the_end_is_the_worst_of_our_placement() -> None:
    arguments = ["utilization", "--problems", "4", "--engines", "2", "--slots", "8"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0
    assert told.stdout == CliRunner().invoke(app, arguments).stdout
    figures = json.loads(told.stdout.splitlines()[-1])
    ours = [figures[algorithm]["affinity"] for algorithm in ALGORITHMS]
    assert figures["busy"] == min(each["busy"] for each in ours)
    assert figures["hit_gap"] == max(max(each["hit_gap"], each["lookup_hit_gap"]) for each in ours)
    assert all("random" in figures[algorithm] for algorithm in ALGORITHMS)
