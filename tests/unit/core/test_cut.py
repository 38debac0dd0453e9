"""Parts of a command to sample."""

from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.commands import Generate
from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.journal import cut, without
from ramify.scheduler.plan import Generator, JobPlan, Verifier
from ramify.scheduler.policies.knobs import Knobs

PARAMS = StepParams(1.0, 1.0, 8, "\n")
PLAN = JobPlan("job", Knobs.fill({"policy": "beam"}).build(), PARAMS, (Generator("g"),), (Verifier("v"),), "")


def command(children: list[int], lengths: list[int]) -> Generate:
    """Chains of so many tokens, each with so many steps to be sampled."""
    groups, rows = len(children), sum(children)
    ends = np.cumsum([0, *lengths[:groups]], dtype=np.int64)
    names = np.arange(rows, dtype=np.uint64)
    return Generate(
        plan=PLAN,
        generator="g",
        params=PARAMS,
        speculative=False,
        tokens=np.arange(ends[-1], dtype=np.int32),
        offsets=ends,
        parent_id=np.arange(groups, dtype=np.uint64) + np.uint64(100),
        group=np.repeat(np.arange(groups, dtype=np.int32), children),
        hint=names.astype(np.int64) + 7,
        tree_id=names // np.uint64(4),
        node_id=names + np.uint64(1000),
        code=names / (rows + 1),
        attempt=(names % 3).astype(np.uint8),
        depth=(names % 5).astype(np.int16),
    )


def told(command: Generate) -> list[tuple[object, ...]]:
    """Each step with all that an engine is told of it."""
    columns = [getattr(command, name).tolist() for name in ("hint", "tree_id", "node_id", "code", "attempt", "depth")]
    chains = [command.tokens[a:b].tolist() for a, b in zip(command.offsets, command.offsets[1:], strict=False)]
    group = command.group.tolist()
    return [(chains[at], int(command.parent_id[at]), *row) for at, *row in zip(group, *columns, strict=True)]


COMMANDS = st.lists(st.integers(1, 4), min_size=1, max_size=6).flatmap(
    lambda children: st.lists(st.integers(1, 5), min_size=6, max_size=6).map(lambda lengths: command(children, lengths))
)


@given(COMMANDS, st.data())
def test_a_part_asks_for_the_same_of_fewer_chains(whole: Generate, data: st.DataObject) -> None:
    rows = len(whole.hint)
    start = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(start + 1, rows))
    place = np.arange(rows)
    for part in (cut(whole, start, end), without(whole, (place < start) | (place >= end))):
        assert told(part) == told(whole)[start:end]
        assert set(part.group.tolist()) == set(range(len(part.offsets) - 1)), "no chain that nothing continues"
        assert part.offsets[0] == 0
        assert part.offsets[-1] == len(part.tokens)
        for field in fields(Generate):
            if isinstance(value := getattr(whole, field.name), np.ndarray):
                assert getattr(part, field.name).dtype == value.dtype, field.name


@given(COMMANDS, st.data())
def test_any_steps_may_be_left_out(whole: Generate, data: st.DataObject) -> None:
    rows = len(whole.hint)
    known = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), np.bool_)
    left = without(whole, known)
    assert told(left) == [each for each, gone in zip(told(whole), known.tolist(), strict=True) if not gone]
    assert len(left.parent_id) == len(left.offsets) - 1 == len(np.unique(whole.group[~known]))


def test_a_part_is_a_view() -> None:
    whole = command([2, 2], [3, 4])
    assert np.shares_memory(cut(whole, 1, 3).tokens, whole.tokens)
    assert told(cut(whole, 0, 4)) == told(whole)
