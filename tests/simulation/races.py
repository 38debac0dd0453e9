"""Jobs of policies that don't wait for a level: their trees depend on the order of arrival, and yet on nothing else."""

from tests.simulation.world import Work, plan

RACES: dict[str, tuple[Work, ...]] = {
    "beam": (Work(plan(barrier="none", n=6, keep=3, stop_score=0.5, checker="rule"), (0, 1, 2)),),
    "beam_speculating": (
        Work(plan(barrier="none", n=8, keep=4, speculate=2, aggregate="prod", stop_score=0.3, checker="rule"), (0, 1, 2)),
    ),
    "beam_with_copies": (Work(plan(barrier="none", n=16, keep=4, speculate=4, duplicates="keep", max_steps=6), (3, 4)),),
    "beam_with_threshold": (Work(plan(barrier="none", n=9, keep=3, speculate=1, threshold=0.6, aggregate="mean"), (5, 6)),),
    "beam_on_a_budget": (Work(plan(barrier="none", n=6, keep=2, speculate=1, tokens_per_tree_max=61), (0, 1, 2)),),
    "beam_of_few_steps": (Work(plan(barrier="none", n=6, keep=2, speculate=2, steps_per_tree_max=9), (0, 1, 2)),),
    "mcts": (Work(plan(policy="mcts", barrier="none", iterations=12, parallel=3, branch=2, checker="rule"), (0, 1, 2)),),
    "mcts_of_few": (Work(plan(policy="mcts", barrier="none", iterations=5, parallel=3, branch=3), (0, 1, 2)),),
    "mcts_on_a_budget": (Work(plan(policy="mcts", barrier="none", parallel=2, tokens_per_tree_max=61), (5, 6, 7)),),
    "best_first": (Work(plan(policy="best_first", barrier="none", parallel=3, max_steps=6), (0, 1, 2)),),
    "best_first_of_few": (Work(plan(policy="best_first", barrier="none", iterations=5, parallel=3, branch=3), (0, 1, 2)),),
    "best_first_with_copies": (
        Work(plan(policy="best_first", barrier="none", parallel=4, branch=2, duplicates="keep", aggregate="mean"), (3, 4)),
    ),
    "best_first_on_a_budget": (Work(plan(policy="best_first", barrier="none", parallel=2, steps_per_tree_max=9), (5, 6, 7)),),
    "self_consistency": (Work(plan(policy="self_consistency", barrier="none", n=9, parallel=4, confidence=0.8), (0, 1, 2)),),
    "self_consistency_by_the_shell": (
        Work(plan(policy="self_consistency", barrier="none", n=9, parallel=3, compare="first_letter"), (0, 1, 2)),
    ),
    "self_consistency_margin": (
        Work(plan(policy="self_consistency", barrier="none", n=8, parallel=8, stop="margin", checker="rule"), (3, 4, 5)),
    ),
}
