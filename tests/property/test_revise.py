"""Revision decides about many trees as its plain reference decides about each of them."""

from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.policies.revise import Revise
from tests.property.driven import Driver
from tests.property.plain_revise import drafts_begun, is_wrong, plain_revise


@st.composite
def policies(draw: st.DrawFn) -> Revise:
    return Revise(
        iterations=draw(st.integers(1, 7)),
        parallel=draw(st.integers(1, 4)),
        threshold=draw(st.sampled_from((0.0, 0.25, 0.5, 0.875, 1.0))),
        max_steps=draw(st.integers(1, 5)),
    )


@given(st.data(), policies())
def test_equals_its_reference_from_the_root_to_the_end(data: st.DataObject, policy: Revise) -> None:
    driver = Driver(data, policy, plain_revise)
    driver.run()
    for tree in driver.grown.trees:
        begun = drafts_begun(tree)
        assert begun <= policy.iterations
        assert driver.forest.visits[tree.root.row] == begun
        candidates = [node for node in tree.nodes if node.parent and node.status in (Status.OPEN, Status.RETIRED)]
        good = [node for node in candidates if not any(is_wrong(step, policy) for step in node.chain())]
        if any(node.finish == Finish.END for node in good):
            assert all(node in good for node in candidates), "who is accepted competes with nobody else"
        else:
            assert begun == policy.iterations, "a tree without an accepted draft has used all of its drafts"


@given(st.data(), policies())
def test_the_last_drafts_are_never_given_up(data: st.DataObject, policy: Revise) -> None:
    """Without faults, every tree has a chain that has ended: by itself, or by its depth or context."""
    driver = Driver(data, policy, plain_revise)
    driver.run()
    for tree in driver.grown.trees:
        lost = [node for node in tree.nodes if node.finish == Finish.ERROR]
        ended = [node for node in tree.nodes if node.parent and node.status in (Status.OPEN, Status.RETIRED)]
        assert len(ended) + len(lost) > 0
