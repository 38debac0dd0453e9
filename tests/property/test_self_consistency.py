"""Self-consistency decides about many trees as its plain reference decides about each of them."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_GROUP, Status
from ramify.scheduler.policies.self_consistency import SelfConsistency, votes_needed
from tests.property.driven import Driver, assert_moves
from tests.property.forests import Grown, forests, i32, some_trees
from tests.property.plain_self_consistency import chance_that_first_leads, plain_self_consistency
from tests.property.reference import last_line

CONFIDENCES = (0.51, 0.75, 0.875, 0.95, 1.0)


@st.composite
def policies(draw: st.DrawFn) -> SelfConsistency:
    return SelfConsistency(
        n=draw(st.integers(1, 9)),
        parallel=draw(st.integers(1, 5)),
        stop=draw(st.sampled_from(("never", "beta", "margin"))),
        confidence=draw(st.sampled_from(CONFIDENCES)),
        margin=draw(st.sampled_from((0.25, 0.5, 1.0))),
        max_steps=draw(st.integers(1, 4)),
        barrier=draw(st.sampled_from(("level", "none"))),
    )


@given(st.data(), policies())
def test_equals_its_reference_from_the_root_to_the_end(data: st.DataObject, policy: SelfConsistency) -> None:
    driver = Driver(data, policy, plain_self_consistency)
    driver.run()
    for tree in driver.grown.trees:
        assert tree.root.children <= policy.n
        if policy.stop == "never":
            assert tree.root.children == policy.n


@given(st.data(), forests(in_flight=True) | forests(answers=True), policies())
def test_equals_its_reference_on_any_forest(data: st.DataObject, grown: Grown, policy: SelfConsistency) -> None:
    for tree in grown.trees:
        groups: dict[str, int] = {"": NO_GROUP}
        for node in tree.nodes:
            if node.finish == Finish.END:
                grown.forest.group[node.row] = groups.setdefault(last_line(node), len(groups))
    policy = replace(policy, n=30)  # no fewer than there are chains
    chosen = some_trees(data, grown)
    if policy.barrier == "level":
        busy = (Status.SAMPLING, Status.SCORING)
        chosen = [tree for tree in chosen if not any(node.status in busy for node in grown.trees[tree].nodes)]
    moves = policy.advance(grown.forest, i32(*chosen))
    assert_moves(moves, {tree: plain_self_consistency(grown.trees[tree], policy) for tree in chosen})


@given(st.integers(1, 40), st.sampled_from(CONFIDENCES) | st.floats(0.5, 1, exclude_min=True))
def test_the_votes_that_are_needed_are_exact(n: int, confidence: float) -> None:
    for second, needed in enumerate(votes_needed(n, confidence).tolist()):
        enough = [first for first in range(n - second + 1) if chance_that_first_leads(first, second) >= Fraction(confidence)]
        assert needed == (enough[0] if enough else n + 1)


def test_the_rule_of_adaptive_consistency() -> None:
    """4 chains that agree are enough for 0.95; one that doesn't costs two more, and 0.75 is met exactly by one chain."""
    assert votes_needed(16, 0.95)[:3].tolist() == [4, 6, 8]
    assert votes_needed(16, 0.75)[0] == 1
    assert votes_needed(16, 0.96875)[0] == 4, "31/32 is exact: a float sum may miss it"
    assert (votes_needed(16, 1.0) == 17).all(), "nothing is ever certain"


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 1), (8, 5), (1, 4)])
def test_the_chance_is_the_integral_of_the_beta_density(first: int, second: int) -> None:
    steps = 20_000
    points = [(at + 0.5) / steps for at in range(steps)]
    density = [p**first * (1 - p) ** second for p in points]
    above = sum(density[steps // 2 :]) / sum(density)
    assert float(chance_that_first_leads(first, second)) == pytest.approx(above, abs=1e-6)
