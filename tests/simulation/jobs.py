"""Jobs to be run through every law: each policy, in several shapes."""

from functools import cache

from ramify.scheduler.plan import Generator, Verifier
from tests.simulation.world import CALM, Weather, Work, World, plan

WORKS: dict[str, tuple[Work, ...]] = {
    "beam": (Work(plan(n=6, keep=3), (0, 1, 2)),),
    "beam_retire": (Work(plan(n=6, keep=3, finished="retire", aggregate="mean"), (3, 4, 5)),),
    "beam_refill": (Work(plan(n=4, keep=2, finished="refill", aggregate="min", answer="vote"), (6, 7)),),
    "beam_keeps_copies": (Work(plan(n=4, keep=4, duplicates="keep", aggregate="prod", checker="rule"), (8, 9)),),
    "beam_on_a_budget": (Work(plan(n=6, keep=2, tokens_per_tree_max=61), (0, 1, 2)),),
    "beam_of_two_models": (Work(plan(n=6, keep=3, generators=(Generator("a", 2.0), Generator("b"))), (0, 1, 2)),),
    "beam_of_three_verifiers": (
        Work(
            plan(n=6, keep=3, verifiers=(Verifier("b", 2.0, 1.5), Verifier("a", when="way"), Verifier("c", when="end"))),
            (0, 1, 2),
        ),
    ),
    "best_of_n": (Work(plan(policy="best_of_n", n=4, checker="rule"), (0, 1, 2)),),
    "best_of_n_vote": (Work(plan(policy="best_of_n", n=5, answer="weighted_vote", aggregate="mean"), (3, 4)),),
    "best_of_n_vote_by_the_shell": (
        Work(plan(policy="best_of_n", n=5, answer="vote", compare="first_letter", checker="rule"), (0, 1, 2)),
    ),
    "self_consistency_by_the_shell": (
        Work(plan(policy="self_consistency", n=8, parallel=3, confidence=0.75, compare="first_letter"), (0, 1, 2)),
    ),
    "best_of_n_on_a_budget": (Work(plan(policy="best_of_n", n=4, tokens_per_tree_max=50), (5, 6, 7)),),
    "self_consistency": (Work(plan(policy="self_consistency", n=7, parallel=3, confidence=0.75), (0, 1, 2)),),
    "self_consistency_margin": (
        Work(plan(policy="self_consistency", n=9, parallel=2, stop="margin", answer="weighted_vote"), (3, 4)),
    ),
    "self_consistency_never": (Work(plan(policy="self_consistency", n=5, parallel=8, stop="never", checker="rule"), (5, 6)),),
    "self_consistency_on_a_budget": (Work(plan(policy="self_consistency", n=8, tokens_per_tree_max=50), (5, 6, 7)),),
    "revise": (Work(plan(policy="revise"), (0, 1, 2)),),
    "revise_many": (Work(plan(policy="revise", iterations=6, parallel=3, threshold=0.7, checker="rule"), (3, 4)),),
    "revise_in_vain": (Work(plan(policy="revise", iterations=5, parallel=2, threshold=1.0, answer="vote"), (5, 6)),),
    "revise_on_a_budget": (Work(plan(policy="revise", parallel=2, threshold=0.8, tokens_per_tree_max=40), (5, 6, 7)),),
    "dvts": (Work(plan(policy="dvts", n=6, keep=3), (0, 1, 2)),),
    "dvts_single": (Work(plan(policy="dvts", n=4, keep=4, aggregate="mean", answer="vote", checker="rule"), (3, 4, 5)),),
    "dvts_on_a_budget": (Work(plan(policy="dvts", n=6, keep=2, tokens_per_tree_max=61), (0, 1, 2)),),
    "lookahead": (Work(plan(policy="lookahead", n=6, keep=3), (0, 1, 2)),),
    "lookahead_far": (
        Work(plan(policy="lookahead", n=4, keep=2, lookahead=2, duplicates="keep", aggregate="min", checker="rule"), (3, 4, 5)),
    ),
    "lookahead_on_a_budget": (Work(plan(policy="lookahead", n=6, keep=2, tokens_per_tree_max=61), (0, 1, 2)),),
    "rebase": (Work(plan(policy="rebase", n=6), (0, 1, 2)),),
    "rebase_even": (Work(plan(policy="rebase", n=5, balance=10.0, aggregate="prod", answer="weighted_vote"), (3, 4, 5)),),
    "rebase_on_a_budget": (Work(plan(policy="rebase", n=6, balance=0.05, tokens_per_tree_max=61), (0, 1, 2)),),
    "particle": (Work(plan(policy="particle", n=6), (0, 1, 2)),),
    "particle_multinomial": (
        Work(plan(policy="particle", n=5, resample="multinomial", ess=1.0, answer="vote", checker="rule"), (3, 4, 5)),
    ),
    "particle_on_a_budget": (Work(plan(policy="particle", n=6, ess=0.9, tokens_per_tree_max=61), (0, 1, 2)),),
    "mcts": (Work(plan(policy="mcts", iterations=9, parallel=2, branch=3), (0, 1, 2)),),
    "mcts_greedy": (Work(plan(policy="mcts", iterations=6, branch=2, exploration=0.0, aggregate="mean", answer="vote"), (3, 4)),),
    "mcts_on_a_budget": (Work(plan(policy="mcts", iterations=12, parallel=3, tokens_per_tree_max=61), (5, 6, 7)),),
    "ab_mcts": (Work(plan(policy="ab_mcts", iterations=20), (0, 1, 2)),),
    "ab_mcts_beta": (
        Work(plan(policy="ab_mcts", iterations=14, parallel=2, belief="beta", aggregate="min", answer="weighted_vote"), (3, 4)),
    ),
    "ab_mcts_on_a_budget": (Work(plan(policy="ab_mcts", parallel=5, tokens_per_tree_max=61, checker="rule"), (5, 6, 7)),),
    "best_first": (Work(plan(policy="best_first", max_steps=6), (0, 1, 2)),),
    "best_first_several": (
        Work(plan(policy="best_first", iterations=9, parallel=3, branch=2, threshold=0.3, duplicates="keep"), (3, 4)),
    ),
    "best_first_on_a_budget": (
        Work(plan(policy="best_first", parallel=2, aggregate="prod", tokens_per_tree_max=61, checker="rule"), (5, 6, 7)),
    ),
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
