"""Budgets, deadlines, lost nodes and cancelled jobs.

That a tree's budget holds what is spent and what is under way at its most is checked by the world after every `handle`.
"""

from dataclasses import replace

import pytest

from ramify.scheduler import shard
from ramify.scheduler.events import Event
from ramify.scheduler.forest.columns import TreeStatus
from ramify.scheduler.plan import Outcome
from ramify.scheduler.policies.knobs import POLICIES
from tests.simulation.jobs import WORKS, assert_same, calm
from tests.simulation.world import ROUGH, Weather, Work, World, chains, plan

POLICY = pytest.mark.parametrize("policy", POLICIES)
SLOW = Weather(delay_ms_max=12, batch_max=3)


@POLICY
@pytest.mark.parametrize("tokens", [0, 5, 6, 29, 36, 64, 100, 1_000])
def test_a_budget_is_never_overrun(policy: str, tokens: int) -> None:
    work = Work(plan(policy=policy, **chains(policy, 6), tokens_per_tree_max=tokens), (0, 1, 2, 3))
    free = World([replace(work, plan=replace(work.plan, tokens_per_tree_max=10**9))]).run()
    world = World([work], SLOW, seed=tokens).run()
    world.check_ended()
    for tree in work.trees:
        result, unbounded = world.store.results[tree], free.store.results[tree]
        assert result.tokens <= tokens
        if result.outcome == Outcome.BUDGET:
            assert unbounded.tokens > tokens - work.plan.params.max_step_tokens * 6, "a budget is used as far as a level goes"
        else:
            assert result.tokens == unbounded.tokens
    if tokens < work.plan.params.max_step_tokens:
        assert {result.tokens for result in world.store.results.values()} == {0}
        assert {result.outcome for result in world.store.results.values()} == {Outcome.BUDGET}


@POLICY
def test_a_tight_budget_goes_to_the_best(policy: str) -> None:
    """What a budget still bears is spent: fewer chains, and an answer where one has ended."""
    work = Work(plan(policy=policy, **chains(policy, 6), tokens_per_tree_max=50), tuple(range(12)))
    world = World([work]).run()
    outcomes = [result.outcome for result in world.store.results.values()]
    cut = [result for result in world.store.results.values() if result.outcome == Outcome.BUDGET]
    assert Outcome.BUDGET in outcomes
    assert any(result.answer_node_id for result in cut)
    assert any(result.tokens > 50 - 2 * 6 for result in cut)


@POLICY
def test_a_deadline_ends_every_tree(policy: str) -> None:
    work = Work(plan(policy=policy, **chains(policy, 6), max_steps=30, deadline_ms=40), tuple(range(20)))
    world = World([work], Weather(delay_ms_max=12, batch_max=3), seed=2).run()
    world.check_ended()
    results = list(world.store.results.values())
    assert world.now_ms < 40 + 6 * world.limits.flush_ms
    late = [result for result in results if result.outcome == Outcome.BUDGET]
    assert late
    assert any(result.answer_node_id for result in late), "what has ended by then may answer"
    assert {result.outcome for result in results} <= {Outcome.BUDGET, Outcome.ANSWERED, Outcome.FAILED}


@POLICY
def test_a_deadline_long_past_ends_trees_on_the_first_tick(policy: str) -> None:
    world = World([Work(plan(policy=policy, deadline_ms=0))]).run()
    assert {result.outcome for result in world.store.results.values()} == {Outcome.BUDGET}
    assert world.store.steps == {}


@pytest.mark.parametrize("name", ["beam", "best_of_n"])
def test_a_lost_node_is_given_up_in_the_end_and_its_tree_goes_on(name: str) -> None:
    unlucky = {node_id for (_, node_id), step in calm(name).store.steps.items() if step.depth == 1 and step.child_index == 0}
    for seed in range(5):
        world = World(WORKS[name], SLOW, seed, doomed=unlucky.__contains__).run()
        world.check_ended()
        for (tree_id, node_id), step in world.store.steps.items():
            if node_id in unlucky:
                assert step.finish == 5
                assert step.tokens == ()
                assert world.tries[tree_id, node_id] == world.limits.tries_max
            else:
                assert world.tries[tree_id, node_id] == 1
        assert any(result.answer_node_id for result in world.store.results.values())


def test_a_tree_that_loses_everything_says_so() -> None:
    for name in ("beam", "best_of_n"):
        world = World(WORKS[name], SLOW, seed=1, doomed=lambda node_id: True).run()
        world.check_ended()
        for result in world.store.results.values():
            assert result.outcome == Outcome.FAILED
            assert result.message == "lost 5 times: the wire was cut"
            assert result.step_count == 6 - 2 * (name == "best_of_n")
            assert result.tokens == 0


@pytest.mark.parametrize("name", ["beam", "best_of_n"])
def test_scores_that_are_lost_for_good_are_no_second_commit(name: str) -> None:
    """The verifier drops chains whose steps are committed already: these get their fault, not another row."""

    class NoVerifier(World):
        def _lose(self, part, tree_id, node_id):  # type: ignore[no-untyped-def]
            tried = [self.tries[int(tree), int(node)] for tree, node in zip(tree_id[part], node_id[part], strict=True)]
            self.doomed = lambda node_id: min(tried) > 0 and self.scoring
            return super()._lose(part, tree_id, node_id)

        scoring = False

        def _carry_out(self, command):  # type: ignore[no-untyped-def]
            self.scoring = type(command).__name__ == "Score"
            super()._carry_out(command)

    world = NoVerifier(WORKS[name], SLOW, seed=3).run()
    world.check_ended()
    assert {result.outcome for result in world.store.results.values()} == {Outcome.FAILED}
    assert sum(result.tokens for result in world.store.results.values()) > 0


@POLICY
@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
def test_a_cancelled_job_gives_no_result_and_leaves_no_rows(policy: str, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "COMPACT_MIN", 1)
    gone = Work(plan("gone", policy=policy, **chains(policy, 6), max_steps=30), (0, 1, 2))
    stays = WORKS["two_jobs"]
    world = World([gone, *stays], SLOW, seed=turns)
    for _ in range(turns):
        world.turn()
    world.cancel(gone)
    written = [tree for tree in gone.trees if tree in world.store.results]
    in_commit = {int(tree) for tree, status in tree_statuses(world) if status == TreeStatus.COMMITTING}
    world.run()
    assert {tree for tree in gone.trees if tree in world.store.results} <= {*written, *in_commit}
    for work in stays:
        for tree in work.trees:
            assert str(world.store.results[tree]) == str(calm("two_jobs").store.results[tree])
    for _ in range(20):
        world.turn()
    assert world.shard.live_trees == 0
    assert world.shard.messages == {}
    world.shard.forest.compact()
    assert (world.shard.forest.size, world.shard.forest.trees.size) == (0, 0)


def test_what_a_cancelled_job_has_spent_is_committed_all_the_same() -> None:
    work = Work(plan("gone", n=6, max_steps=30), (0, 1, 2))
    sampled = 0

    def count(world: World, events: list[Event]) -> None:
        nonlocal sampled
        sampled = max(sampled, int(world.shard.forest.trees.steps[: world.shard.forest.trees.size].sum()))

    world = World([work], SLOW, seed=4, watch=count)
    for _ in range(9):
        world.turn()
    world.cancel(work)
    for _ in range(20):
        world.turn()
    assert sampled > 10
    assert world.store.step_count["gone"] == sampled == len(world.store.steps)
    assert world.store.results == {}


def tree_statuses(world: World) -> list[tuple[int, int]]:
    trees = world.shard.forest.trees
    return list(zip(trees.tree_id[: trees.size].tolist(), trees.status[: trees.size].tolist(), strict=True))


def test_the_same_job_comes_through_rough_weather_on_a_budget() -> None:
    for seed in range(5):
        assert_same(World(WORKS["beam_on_a_budget"], ROUGH, seed).run(), "beam_on_a_budget")
