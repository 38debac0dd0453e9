"""Solutions through a verifier, in bounded batches: what comes out, in the order of what came in."""

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import MappingProxyType
from typing import IO, NamedTuple

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ramify.cli.output import counted, duration, make_console, one_line
from ramify.cli.verifier.desk import Desk
from ramify.cli.verifier.interrupts import Interrupts
from ramify.cli.verifier.solutions import Broken, Record, Solution, read_solutions
from ramify.verifier.chains import ChainError, ChainScores
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import ModelError

BATCH_LINES, BATCH_BYTES = 512, 1 << 20
BATCHES_MAX = 4  # under way: the next ones wait while one is computed and one is written
FAULTS_SHOWN_MAX = 5
BROKEN = "line"  # what is wrong with a line that is no solution

RESULT_FIELDS = ("scores", "score", "error", "message")  # of an earlier run, maybe

AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType(
    {
        "last": lambda scores: scores[-1],
        "min": min,
        "mean": lambda scores: math.fsum(scores) / len(scores),
        "prod": math.prod,
    }
)


class _Batch(NamedTuple):
    lines: list[Solution | Broken]
    scores: "Future[list[ChainScores]]"
    place: int  # where it ends in the file; 0 in a pipe


class Tally:
    """What has been scored so far."""

    def __init__(self, model: str, revision: str) -> None:
        self.lines = self.chains = self.steps = 0
        self.errors = Counter[str]()
        self._faults: list[str] = []  # the first few, for people
        self._whole = self._cut = 0  # solutions in one piece that were to be cut; those of them that came to several steps
        self._model, self._revision = model, revision
        self._began_s = time.monotonic()

    def add(self, line: Solution | Broken, found: ChainScores | None) -> None:
        """Counts a line and its scores."""
        self.lines += 1
        if isinstance(line, Solution):
            self.chains += 1
            self.steps += len(line.chain.steps)
            self._whole += line.whole
            self._cut += line.whole and len(line.chain.steps) > 1
        if fault := fault_of(line, found):
            self.errors[fault[0]] += 1
            if len(self._faults) < FAULTS_SHOWN_MAX:
                self._faults.append(f"line {line.line:,}: {one_line(fault[1])}")

    def numbers(self) -> str:
        """What there is to say, on one line."""
        elapsed_s = time.monotonic() - self._began_s
        parts = [counted(self.chains, "chain"), counted(self.steps, "step")]
        if self.errors:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.errors.most_common())
            parts.append(f"{counted(self.errors.total(), 'error')} ({kinds})")
        return " · ".join([*parts, f"{self.chains / max(elapsed_s, 1e-3):,.0f} chains/s", duration(elapsed_s)])

    def show(self, *, finished: bool) -> None:
        """Says on stderr what became of the file."""
        console = make_console(stderr=True)
        for fault in self._faults:
            console.print(fault, soft_wrap=True)
        if (rest := self.errors.total() - len(self._faults)) > 0:
            console.print(f"and {counted(rest, 'more error')}")
        if self._whole and not self._cut:
            console.print("every solution was one step: if that is wrong, say with --delimiter what ends one", soft_wrap=True)
        console.print(f"{'' if finished else 'stopped: '}{self.numbers()} · {self._model} {self._revision}", soft_wrap=True)


class Scoring:
    """See the module.

    Args:
        desk: The verifier.
        delimiter: What ends a step of a solution that is in one piece; empty: nothing does.
        aggregate: A key of `AGGREGATES`.
        best: Only the solution of each problem with the highest score is wanted, the first of equal ones; they are
            written at the end, in the order in which their problems come first.
    """

    def __init__(self, desk: Desk, delimiter: str, aggregate: str, *, best: bool) -> None:
        self.tally = Tally(desk.source.name, desk.source.revision)
        self._desk, self._delimiter = desk, delimiter
        self._aggregate = AGGREGATES[aggregate]
        self._best: dict[str, tuple[float, bytes]] | None = {} if best else None

    def run(self, lines: IO[bytes], out: IO[bytes], interrupts: Interrupts) -> bool:
        """Scores all lines, and writes; whether it came to the end. Ctrl-C ends it after a whole line.

        Raises:
            VerifierError: the verifier is gone, or its model has changed. What was written so far is whole.
        """
        try:
            with _progress(lines, out) as progress:
                for batch in self._batches(lines):
                    written = self._finish(batch)
                    with interrupts.held():
                        out.write(written)
                        out.flush()
                    progress(self.tally, batch.place)
            with interrupts.held():
                out.write(b"".join(line for _, line in (self._best or {}).values()))
                out.flush()
        except KeyboardInterrupt:
            return False
        return True

    def _batches(self, lines: IO[bytes]) -> Iterator[_Batch]:
        """Batches in the file's order, some of which are under way while one is looked at."""
        under_way = deque[_Batch]()
        seekable = lines.seekable()
        for some in _some(read_solutions(lines, self._delimiter)):
            chains = ChainColumns.of([line.chain for line in some if isinstance(line, Solution)])
            under_way.append(_Batch(some, self._desk.score(chains), lines.tell() if seekable else 0))
            if len(under_way) == BATCHES_MAX:
                yield under_way.popleft()
        yield from under_way

    def _finish(self, batch: _Batch) -> bytes:
        """Waits for a batch's scores; what is to be written of it now."""
        try:
            scores = iter(batch.scores.result())
        except ModelError as error:  # of the whole batch; the next one may be better
            chains = sum(isinstance(line, Solution) for line in batch.lines)
            scores = iter([ChainScores(error=ChainError.MODEL, message=str(error))] * chains)
        written = []
        for line in batch.lines:
            found = next(scores) if isinstance(line, Solution) else None
            self.tally.add(line, found)
            result, score = self._result(line, found)
            text = _json({**{name: line.record[name] for name in line.record if name not in RESULT_FIELDS}, **result})
            if self._best is None:
                written.append(text)
            elif isinstance(line, Solution):
                problem = line.chain.problem
                if problem not in self._best or score > self._best[problem][0]:
                    self._best[problem] = score, text
        return b"".join(written)

    def _result(self, line: Solution | Broken, found: ChainScores | None) -> tuple[dict[str, object], float]:
        """What is added to a line, and its score; that of a fault is the lowest."""
        if fault := fault_of(line, found):
            return {"error": fault[0], "message": fault[1], "line": line.line}, -math.inf
        scores = [_shortest(score) for score in found.scores] if found else []
        score = _shortest(self._aggregate(scores))
        return {"scores": scores, "score": score}, score


def fault_of(line: Solution | Broken, found: ChainScores | None) -> tuple[str, str] | None:
    """The kind of what is wrong with a line, and what it is; None if it has scores."""
    if isinstance(line, Broken):
        return BROKEN, line.message
    if found is not None and found.error:
        return found.error.name.lower(), found.message
    return None


def _some(lines: Iterator[Solution | Broken]) -> Iterator[list[Solution | Broken]]:
    """Lines by the batch."""
    some, size_bytes = list[Solution | Broken](), 0
    for line in lines:
        some.append(line)
        if isinstance(line, Solution):
            size_bytes += sum(map(len, (line.chain.problem, *line.chain.steps)))
        if len(some) == BATCH_LINES or size_bytes >= BATCH_BYTES:
            yield some
            some, size_bytes = [], 0
    if some:
        yield some


def _shortest(score: float) -> float:
    """The shortest number that is the same in float32."""
    return float(f"{score:.9g}")


def _json(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in a field that nobody scores
        return json.dumps(record).encode() + b"\n"


@contextmanager
def _progress(lines: IO[bytes], out: IO[bytes]) -> Iterator[Callable[[Tally, int], None]]:
    """A display on stderr if that is a terminal and the lines are not shown there too; what moves it on."""
    console = make_console(stderr=True)
    if not console.is_terminal or out.isatty():
        yield lambda _tally, _place: None
        return
    size_bytes = os.fstat(lines.fileno()).st_size if lines.seekable() else None
    text = TextColumn("{task.description}")
    columns = (BarColumn(), TimeRemainingColumn(), text) if size_bytes else (text,)
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("", total=size_bytes)
        yield lambda tally, place: display.update(task, completed=place, description=tally.numbers())
