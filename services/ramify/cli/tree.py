"""One search tree as a person would want to see it."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text
from rich.tree import Tree as RichTree

from ramify.cli.output import counted, one_line
from ramify.cli.tables import outcome_text, verdict_text
from ramify.cli.tree_steps import Step, Steps, fold
from ramify.v1 import job_pb2

#: Siblings that are shown beside the chosen chain; the others are counted.
SIBLINGS_MAX = 4

#: Levels that are shown of what leads away from the chosen chain.
ASIDE_LEVELS_MAX = 3

#: Deeper trees aren't indented with every step, which would soon use up the screen.
NESTED_LEVELS_MAX = 8

_PROBLEM_CELLS_MAX = 500
_BAR_CELLS = 5
_EIGHTHS = " ▏▎▍▌▋▊▉█"

_ENDS = {
    job_pb2.FINISH_END: ("■", ""),
    job_pb2.FINISH_CONTEXT: ("■ context full", "yellow"),
    job_pb2.FINISH_ERROR: ("■ error", "red"),
}


def render_tree(tree: job_pb2.Tree, *, show_all: bool = False) -> RenderableType:
    """The tree under a line that says what came of it.

    The most promising steps come first and the chosen chain is marked; what else there is is cut short unless
    `show_all`. Steps are cut to one line.
    """
    steps = fold(tree)
    growing = not tree.HasField("result")
    drawing = _Drawing(show_all=show_all, nested=steps.depth_max <= NESTED_LEVELS_MAX, growing=growing)
    rendered = RichTree(_header(tree, steps), guide_style="dim")
    if not tree.nodes:
        rendered.add(Text("no steps yet" if growing else "no steps", "dim"))
    elif drawing.nested:
        drawing.add_nested(rendered, steps.root)
    else:
        drawing.add_chain(rendered, steps.root)
    return Group(rendered, *_notes(tree, drawing))


def _header(tree: job_pb2.Tree, steps: Steps) -> Text:
    problem = Text(one_line(tree.problem.text) or f"problem {tree.problem_index}", "bold")
    problem.truncate(_PROBLEM_CELLS_MAX, overflow="ellipsis")
    header = Text().append_text(problem)
    if tree.HasField("result"):
        header.append(" · ").append_text(outcome_text(tree.result.outcome))
        if tree.result.verdict:
            header.append(" · ").append_text(verdict_text(tree.result.verdict))
    else:
        header.append(" · growing")
    tokens = tree.result.tokens if tree.HasField("result") else steps.token_count
    counts = (
        counted(steps.chain_count, "chain"),
        counted(steps.step_count, "step"),
        counted(tokens, "token"),
    )
    return header.append(" · " + ", ".join(counts))


def _notes(tree: job_pb2.Tree, drawing: "_Drawing") -> list[Text]:
    """What is damaged, what failed, or what the marks mean."""
    notes = [Text(f"damaged: {one_line(tree.damage)}", "red")] if tree.damage else []
    if tree.result.restarted:
        notes.append(Text(f"restarted: {one_line(tree.result.restarted)}", "yellow"))
    if tree.result.outcome == job_pb2.OUTCOME_FAILED:
        return [*notes, Text(one_line(tree.result.message), "red")]
    if tree.result.note:
        notes.append(Text(one_line(tree.result.note), "yellow"))
    if not tree.nodes:
        return notes
    legend = Text("● chosen  " if tree.result.answer_node_id else "", "dim")
    legend.append("○ open  " if drawing.growing else "· given up  ").append("■ end of a chain  ×3 alike")
    if not drawing.nested:
        legend.append("  indented: tried instead")
    return [legend, *notes]


@dataclass(frozen=True, slots=True)
class _Line:
    """A step's text, cut so that what stands after it is still seen."""

    text: Text
    mark: Text
    whole: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        if not self.whole:
            text.truncate(max(1, options.max_width - self.mark.cell_len), overflow="ellipsis")
        yield text.append_text(self.mark)


@dataclass(frozen=True, slots=True)
class _Drawing:
    show_all: bool
    nested: bool
    growing: bool

    def add_nested(self, branch: RichTree, parent: Step, levels_aside: int = 0) -> None:
        """Draws what follows on a step, each step one level deeper than the one before it."""
        shown, folded = self._sort_out(parent, levels_aside)
        for child in shown:
            self.add_nested(branch.add(self._line(child)), child, 0 if child.chosen else levels_aside + 1)
        _add_fold(branch, folded)

    def add_chain(self, branch: RichTree, parent: Step, levels_aside: int = 0) -> None:
        """Draws the chain that follows on a step, all of it at one indent, and below each step what was tried instead.

        The chain is the chosen one, or the one with most below it: so there are few levels, however deep the tree.
        """
        while True:
            shown, folded = self._sort_out(parent, levels_aside)
            if not shown:
                _add_fold(branch, folded)
                return
            first = shown[0] if shown[0].chosen else max(shown, key=lambda step: step.below)
            twig = branch.add(self._line(first))
            for other in shown:
                if other is not first:
                    self.add_chain(twig.add(self._line(other)), other, levels_aside + 1)
            _add_fold(twig, folded)
            parent = first

    def _sort_out(self, parent: Step, levels_aside: int) -> tuple[list[Step], list[Step]]:
        """Which children are shown and which are only counted."""
        children = parent.children
        if self.show_all:
            return children, []
        given_up = parent.parent is not None and not parent.ended and not self.growing
        limit = SIBLINGS_MAX
        if given_up or levels_aside >= ASIDE_LEVELS_MAX:
            limit = 0
        elif not self.nested:  # as long as it is deep: only what is worth it
            limit = min(limit, max(1, sum(child.ended for child in children)))
        if sum(1 + child.below for child in children[limit:]) == 1:
            limit = len(children)  # a line that says "1 more" may as well show it
        return children[:limit], children[limit:]

    def _line(self, step: Step) -> _Line:
        given_up = not step.ended and not self.growing
        style = "bold" if step.chosen else "dim" if given_up else ""
        line = Text("● " if step.chosen else "· " if given_up else "○ ", "bold green" if step.chosen else style)
        line.append_text(_score(step.score, dim=given_up))
        if step.copies > 1:
            line.append(f"×{step.copies} ", "cyan dim" if given_up else "cyan")
        line.append(step.text or "(empty)", style)
        mark, mark_style = _ENDS.get(step.finish, ("", ""))
        writers = f" ({', '.join(sorted(step.writers))})" if step.writers else ""
        end = Text.assemble((writers, "dim"), (f" {mark}" if mark else "", mark_style or style))
        return _Line(line, end, self.show_all)


def _score(score: float | None, *, dim: bool) -> Text:
    if score is None:
        return Text("   –" + " " * (_BAR_CELLS + 2), "dim")
    colour = "green" if score >= 2 / 3 else "yellow" if score >= 1 / 3 else "red"
    full, eighth = divmod(round(min(max(score, 0.0), 1.0) * _BAR_CELLS * 8), 8)
    bar = ("█" * full + _EIGHTHS[eighth].strip()).ljust(_BAR_CELLS)
    return Text(f"{score:.2f} {bar} ", f"{colour} dim" if dim else colour)


def _add_fold(branch: RichTree, folded: list[Step]) -> None:
    if folded:
        best = max((step.best for step in folded if step.best is not None), default=None)
        count = counted(sum(1 + step.below for step in folded), "more step")
        branch.add(Text(f"… {count}" + ("" if best is None else f", best {best:.2f}"), "dim"))
