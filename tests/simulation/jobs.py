"""Jobs to be run through every law: each policy, in several shapes."""

from functools import cache

from tests.simulation.world import CALM, Weather, Work, World, plan

WORKS: dict[str, tuple[Work, ...]] = {
    "beam": (Work(plan(n=6, keep=3), (0, 1, 2)),),
    "beam_retire": (Work(plan(n=6, keep=3, finished="retire", aggregate="mean"), (3, 4, 5)),),
    "beam_refill": (Work(plan(n=4, keep=2, finished="refill", aggregate="min", answer="vote"), (6, 7)),),
    "beam_keeps_copies": (Work(plan(n=4, keep=4, duplicates="keep", aggregate="prod", checker="rule"), (8, 9)),),
    "beam_on_a_budget": (Work(plan(n=6, keep=2, tokens_per_tree_max=61), (0, 1, 2)),),
    "best_of_n": (Work(plan(policy="best_of_n", n=4, checker="rule"), (0, 1, 2)),),
    "best_of_n_vote": (Work(plan(policy="best_of_n", n=5, answer="weighted_vote", aggregate="mean"), (3, 4)),),
    "best_of_n_on_a_budget": (Work(plan(policy="best_of_n", n=4, tokens_per_tree_max=50), (5, 6, 7)),),
    "two_jobs": (
        Work(plan("job-a", n=4, keep=2, checker="rule"), (0, 1)),
        Work(plan("job-b", policy="best_of_n", n=3, answer="vote"), (0, 1), seed=2),
    ),
}


@cache
def calm(name: str) -> World:
    """A job's run in which nothing goes wrong: what every other run of it must come to."""
    world = World(WORKS[name], CALM).run()
    world.check_ended()
    return world


def assert_same(world: World, name: str) -> None:
    """A run has come to the same trees and answers as the calm one."""
    world.check_ended()
    results, steps = world.outcome()
    wanted_results, wanted_steps = calm(name).outcome()
    assert results == wanted_results, repr(world)
    assert steps == wanted_steps, repr(world)


def run(name: str, weather: Weather, seed: int) -> World:
    """A job's run to the end, in some weather."""
    return World(WORKS[name], weather, seed).run()
