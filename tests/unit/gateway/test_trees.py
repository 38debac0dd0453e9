from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.gateway.trees import tree_message
from ramify.scheduler.forest.ids import writers
from ramify.scheduler.plan import Generator
from ramify.store.segments import NO_STEPS, take
from tests.unit.store.helpers import Step, rows

ROOT = 1


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """A tree of up to 20 steps; ids say nothing of the order."""
    ids = draw(st.lists(st.integers(2, 10_000), unique=True, max_size=20))
    grown: list[Step] = []
    for place, node in enumerate(ids):
        parent = draw(st.sampled_from([None, *grown]))
        above, depth = (parent.node, parent.depth + 1) if parent else (ROOT, 1)
        grown.append(Step(5, node, above, child=place, depth=depth, text=f"step {node}".encode()))
    return grown


@given(steps(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_one_tree_is_one_message_whatever_the_order_of_its_steps(grown: list[Step], random: Random) -> None:
    nodes = rows(*grown)
    message = tree_message(nodes, ROOT)
    shuffled = list(range(len(grown)))
    random.shuffle(shuffled)
    assert tree_message(take(nodes, np.array(shuffled, np.int64)), ROOT) == message
    assert {(node.node_id, node.parent_id, node.depth, node.text) for node in message.nodes} == {
        (step.node, step.parent, step.depth, step.text.decode()) for step in grown
    }
    place = {ROOT: -1} | {node.node_id: index for index, node in enumerate(message.nodes)}
    assert all(place[node.parent_id] < place[node.node_id] for node in message.nodes), "parents come first"
    keys = [(node.depth, place[node.parent_id], node.child_index) for node in message.nodes]
    assert keys == sorted(keys)


def test_a_tree_says_which_of_several_models_wrote_each_step() -> None:
    nodes = rows(*(Step(5, node, ROOT, child=node, depth=1, text=b"step") for node in range(2, 1002)))
    assert {node.generator for node in tree_message(nodes, ROOT).nodes} == {""}
    message = tree_message(nodes, ROOT, [Generator("a", 3.0), Generator("b", 1.0)])
    at = writers(np.array([node.node_id for node in message.nodes], np.uint64), [3.0, 1.0])
    assert [node.generator for node in message.nodes] == ["ab"[each] for each in at]
    assert 700 < sum(node.generator == "a" for node in message.nodes) < 800


def test_a_tree_without_steps() -> None:
    assert list(tree_message(NO_STEPS, ROOT).nodes) == []


def test_a_step_that_ends_inside_of_a_character() -> None:
    (node,) = tree_message(rows(Step(5, 2, text="ä".encode()[:1])), ROOT).nodes
    assert node.text == "\N{REPLACEMENT CHARACTER}"
