"""A search tree's steps as they are shown: siblings that say the same are one, and each knows what became of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ramify.cli.output import one_line
from ramify.v1 import job_pb2

#: What ends a chain.
ENDS = frozenset((job_pb2.FINISH_END, job_pb2.FINISH_CONTEXT, job_pb2.FINISH_ERROR))


@dataclass(slots=True, eq=False)
class Step:
    """One step as it is shown; stands for all siblings with its text."""

    text: str
    parent: "Step | None"
    copies: int = 0
    #: The best score among the copies; None if none is scored.
    score: float | None = None
    #: The models that wrote the copies, where the job has several.
    writers: set[str] = field(default_factory=set)
    #: FINISH_END, FINISH_CONTEXT or FINISH_ERROR if a chain ended here, else unspecified.
    finish: job_pb2.Finish.ValueType = job_pb2.FINISH_UNSPECIFIED
    #: On the way to the answer.
    chosen: bool = False
    #: A chain ended here or below, other than by an error.
    ended: bool = False
    #: Steps below that are shown, copies folded.
    below: int = 0
    #: The best score of this step and those below.
    best: float | None = None
    children: "list[Step]" = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of a tree, and what they amount to."""

    root: Step
    chain_count: int
    step_count: int
    token_count: int
    depth_max: int


def fold(tree: job_pb2.Tree) -> Steps:
    """The tree with equal siblings folded into one, the most promising first.

    Works without recursion: a chain may have thousands of steps.
    """
    root = Step("", None)
    step_of_node = {tree.root_id: root}
    steps: list[Step] = []  # parents before children
    step_of_text: dict[tuple[int, str], Step] = {}
    leaves: set[int] = set()
    for node in tree.nodes:
        parent = step_of_node.get(node.parent_id, root)
        text = one_line(node.text)
        step = step_of_text.get((id(parent), text))
        if step is None:
            step = step_of_text[id(parent), text] = Step(text, parent)
            parent.children.append(step)
            steps.append(step)
        step_of_node[node.node_id] = step
        step.copies += 1
        step.writers |= {node.generator} - {""}
        if node.HasField("score") and math.isfinite(node.score):
            step.score = _better(step.score, node.score)
        if node.finish in ENDS:
            step.finish = node.finish
        leaves.discard(node.parent_id)
        leaves.add(node.node_id)
    answer = step_of_node.get(tree.result.answer_node_id) if tree.result.answer_node_id else None
    for step in _way_up(answer):
        step.chosen = True
    _sum_up(steps)
    root.children.sort(key=_rank)
    return Steps(
        root,
        chain_count=len(leaves),
        step_count=len(tree.nodes),
        token_count=sum(len(node.tokens) for node in tree.nodes),
        depth_max=max((node.depth for node in tree.nodes), default=0),
    )


def _sum_up(steps: list[Step]) -> None:
    """Carries what is known of each step up to its parent, and sorts the children, best first."""
    for step in reversed(steps):
        step.best = _better(step.score, step.best)
        step.ended |= step.chosen or step.finish in (job_pb2.FINISH_END, job_pb2.FINISH_CONTEXT)
        step.children.sort(key=_rank)
        parent = step.parent
        assert parent is not None
        parent.ended |= step.ended
        parent.below += 1 + step.below
        parent.best = _better(parent.best, step.best)


def _rank(step: Step) -> tuple[bool, bool, float]:
    return (not step.chosen, not step.ended, -(step.score if step.score is not None else -1.0))


def _way_up(step: Step | None) -> Iterator[Step]:
    while step is not None and step.parent is not None:
        yield step
        step = step.parent


def _better(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)
