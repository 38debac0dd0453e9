"""Search trees to draw."""

from ramify.v1 import job_pb2

#: Child indices from the root on.
Path = tuple[int, ...]

ROOT_ID = 2**64 - 1


def chain_id(path: Path) -> int:
    """A node's id by the child indices that lead to it."""
    return hash(path) % 2**63


def make_tree(
    steps: dict[Path, tuple[str, float | None]],
    *,
    chosen: Path | None = None,
    ends: dict[Path, job_pb2.Finish.ValueType] | None = None,
    text: str = "4 5 6 10",
) -> job_pb2.Tree:
    """A tree from text and score by path; finished if a chain is chosen, which then ends with FINISH_END."""
    finishes = dict(ends or {})
    tree = job_pb2.Tree(job_id="job-1", problem=job_pb2.Problem(text=text), root_id=ROOT_ID)
    for path, (step, score) in sorted(steps.items(), key=lambda item: (len(item[0]), item[0])):
        tree.nodes.add(
            node_id=chain_id(path),
            parent_id=chain_id(path[:-1]) if path[1:] else ROOT_ID,
            child_index=path[len(path) - 1],
            depth=len(path),
            text=step + "\n",
            tokens=[1, 2, 3],
            score=score,
            finish=finishes.get(path, job_pb2.FINISH_END if path == chosen else job_pb2.FINISH_STEP),
        )
    if chosen is not None:
        tree.result.outcome = job_pb2.OUTCOME_ANSWERED
        tree.result.verdict = job_pb2.VERDICT_CORRECT
        tree.result.answer_node_id = chain_id(chosen)
        tree.result.tokens = 812
    return tree


def beam_tree() -> job_pb2.Tree:
    """A puzzle as beam search solves it: 16 first steps, 4 kept, 4 children each, many of them alike."""
    firsts = ["10-4=6:5 6 6"] * 5 + ["6-4=2:2 5 10"] * 3 + ["4*5=20:6 10 20", "10+6=16:4 5 16"] * 2
    firsts += ["4+5=9:6 9 10", "5*6=30:4 10 30", "10-5=5:4 5 6", "6+4=10:5 10 10"]
    score = {text: 0.98 - 0.13 * rank for rank, text in enumerate(dict.fromkeys(firsts))}
    steps: dict[Path, tuple[str, float | None]] = {(i,): (text, max(0.03, score[text])) for i, text in enumerate(firsts)}
    tried: dict[Path, list[str]] = {
        (0,): ["6*5=30:6 30", "6*5=30:6 30", "6+6=12:5 12", "6*6=36:5 36"],
        (5,): ["5*2=10:10 10", "10*2=20:5 20", "10+5=15:2 15", "10*5=50:2 50"],
        (8,): ["20-6=14:10 14", "20+10=30:6 30", "20+10=30:6 30", "20-10=10:6 10"],
        (9,): ["16-4=12:5 12", "16+5=21:4 21", "16*5=80:4 80", "16-5=11:4 11"],
    }
    for parent, texts in tried.items():
        for i, text in enumerate(texts):
            steps[*parent, i] = (text, (0.99, 0.99, 0.21, 0.08)[i] if parent != (9,) else 0.1 + i / 50)
    ends: dict[Path, job_pb2.Finish.ValueType] = {}
    for parent in ((0, 0), (8, 1)):
        for i in range(4):
            steps[*parent, i] = ("30-6=24:24", 1.0) if i < 3 else ("30/6=5:5", 0.02)
            ends[*parent, i] = job_pb2.FINISH_END
    return make_tree(steps, chosen=(0, 0, 0), ends=ends)


def deep_tree(depth: int, tried: int = 3) -> job_pb2.Tree:
    """A chain of so many steps, and beside each step others that led nowhere."""
    steps: dict[Path, tuple[str, float | None]] = {}
    path: Path = ()
    for level in range(depth):
        for i in range(1, tried + 1):
            steps[*path, i] = (f"so that x_{level} is {i} and nothing more can be said of it without a word", 0.3 / i)
        path = (*path, 0)
        steps[path] = (f"step {level}: let x_{level} = {level} * 7, which is what the problem asks us to do here", 0.8)
    return make_tree(steps, chosen=path, text="A longer problem in words")
