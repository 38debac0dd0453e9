"""A tree as the page shows it: the steps that are worth it, few enough to be drawn."""

from collections import deque
from dataclasses import dataclass

from ramify.cli.output import one_line
from ramify.cli.tree_steps import Step, Steps, fold
from ramify.client.spec import word
from ramify.v1 import job_pb2

ROWS_MAX = 400
TEXT_CHARS_MAX = 2000  # of a step, and of the problem
LEVELS_MAX = 16  # that are indented one more than their parent

ENDS = {
    job_pb2.FINISH_END: "ended",
    job_pb2.FINISH_CONTEXT: "context full",
    job_pb2.FINISH_ERROR: "error",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A step."""

    level: int  # of its indent, from 0
    text: str
    score: float | None
    copies: int  # siblings that say the same
    chosen: bool
    end: str  # why the chain ends here; empty: it does not
    hidden: int  # steps below it that are not shown


@dataclass(frozen=True, slots=True)
class View:
    """All that the page shows."""

    problem: str
    state: str  # "growing", or what became of it
    verdict: str
    answer: str
    score: float | None
    message: str  # why there is no answer, or what is odd about it
    chains: int
    steps: int
    tokens: int
    depth: int
    rows: list[Row]
    hidden: int  # steps that are not shown and belong below none that is

    @property
    def done(self) -> bool:
        """Whether it grows no more."""
        return self.state != "growing"


def view(tree: job_pb2.Tree) -> View:
    """What to show of a tree."""
    steps, result = fold(tree), tree.result
    done = tree.HasField("result")
    shown = _selected(steps)
    return View(
        problem=cut(one_line(tree.problem.text)) or f"problem {tree.problem_index}",
        state=word(job_pb2.Outcome.DESCRIPTOR, result.outcome) if done else "growing",
        verdict=word(job_pb2.Verdict.DESCRIPTOR, result.verdict),
        answer=cut(result.answer),
        score=result.score if result.HasField("score") else None,
        message=" · ".join(cut(one_line(text)) for text in (tree.damage, result.restarted, result.message, result.note) if text),
        chains=steps.chain_count,
        steps=steps.step_count,
        tokens=result.tokens if done else steps.token_count,
        depth=steps.depth_max,
        rows=_rows(steps.root, shown),
        hidden=_hidden(steps.root, shown),
    )


def cut(text: str) -> str:
    """Long texts are cut."""
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + " …"


def _selected(steps: Steps) -> set[int]:
    """Ids of the steps that are shown: the chosen chain, then level by level, the most promising first."""
    shown: set[int] = set()
    chosen = next((child for child in steps.root.children if child.chosen), None)
    while chosen is not None and len(shown) < ROWS_MAX:
        shown.add(id(chosen))
        chosen = next((child for child in chosen.children if child.chosen), None)
    level = deque(steps.root.children)
    while level and len(shown) < ROWS_MAX:
        step = level.popleft()
        shown.add(id(step))
        level.extend(step.children)
    return shown


def _rows(root: Step, shown: set[int]) -> list[Row]:
    rows: list[Row] = []
    open_steps = [(child, 0) for child in reversed(root.children) if id(child) in shown]
    while open_steps:
        step, level = open_steps.pop()
        end, hidden = ENDS.get(step.finish, ""), _hidden(step, shown)
        rows.append(Row(min(level, LEVELS_MAX), cut(step.text), step.score, step.copies, step.chosen, end, hidden))
        open_steps += [(child, level + 1) for child in reversed(step.children) if id(child) in shown]
    return rows


def _hidden(step: Step, shown: set[int]) -> int:
    """Steps below a step of which neither they nor what is between is shown."""
    return sum(1 + child.below for child in step.children if id(child) not in shown)
