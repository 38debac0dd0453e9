"""Where the codes of a command come from: a node's siblings are spread, or it is on its own."""

from dataclasses import replace

import numpy as np
import pytest

from ramify.scheduler.commands import Generate
from ramify.scheduler.events import TreesAdmitted
from ramify.scheduler.forest.ids import node_codes, root_ids, sibling_codes, tree_ids
from ramify.scheduler.shard import Shard
from tests.simulation.world import plan


@pytest.mark.parametrize("spread", [True, False])
def test_a_command_spreads_siblings_if_the_plan_says_so(spread: bool) -> None:
    problem = np.array([0], np.int64)
    root = root_ids(5, problem)
    one = np.ones(1, np.int32)
    event = TreesAdmitted(
        replace(plan(n=8), spread_siblings=spread),
        tree_ids("job", problem),
        problem,
        root,
        np.ones(1, np.int32),
        one,
        np.frombuffer(b"?", np.uint8),
        one,
    )
    (command,) = Shard().handle([event])
    assert isinstance(command, Generate)
    spread_codes = sibling_codes(np.repeat(root, 8), np.arange(8, dtype=np.int32))
    assert (command.code == (spread_codes if spread else node_codes(command.node_id))).all()
    gaps = np.diff(np.sort(command.code))
    assert np.allclose(gaps, 1 / 8) == spread
