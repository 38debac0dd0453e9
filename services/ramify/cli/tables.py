"""Jobs, results and whatever else as tables."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ramify.cli.output import duration, one_line
from ramify.cli.trouble import loss_counts, wait_lines
from ramify.client.spec import word
from ramify.v1 import job_pb2

#: Rows of one table; longer listings come as several, so that none holds a million rows.
ROWS_MAX = 1_000

_NONE = Text("–", "dim")

_STATE_STYLES = {
    job_pb2.JOB_STATE_UPLOADING: "yellow",
    job_pb2.JOB_STATE_RUNNING: "cyan",
    job_pb2.JOB_STATE_DONE: "green",
    job_pb2.JOB_STATE_CANCELLED: "yellow",
}

_OUTCOME_STYLES = {job_pb2.OUTCOME_BUDGET: "yellow", job_pb2.OUTCOME_FAILED: "red"}

_VERDICT_STYLES = {job_pb2.VERDICT_CORRECT: "green", job_pb2.VERDICT_WRONG: "red"}

_Item = TypeVar("_Item")


def state_text(state: job_pb2.JobState.ValueType) -> Text:
    """The word of a state in its colour."""
    return Text(word(job_pb2.JobState.DESCRIPTOR, state), _STATE_STYLES.get(state, ""))


def outcome_text(outcome: job_pb2.Outcome.ValueType) -> Text:
    """The word of an outcome in its colour."""
    return Text(word(job_pb2.Outcome.DESCRIPTOR, outcome), _OUTCOME_STYLES.get(outcome, ""))


def verdict_text(verdict: job_pb2.Verdict.ValueType) -> Text:
    """The word of a verdict in its colour; empty if nothing was checked."""
    return Text(word(job_pb2.Verdict.DESCRIPTOR, verdict), _VERDICT_STYLES.get(verdict, ""))


@dataclass(frozen=True, slots=True)
class NotedTable:
    """A table in which what there is to say about a row stands in lines of their own below it."""

    table: Table  # each of its rows is one line, and so is its header
    notes: list[list[Text]] = field(default_factory=list)  # of each row

    @property
    def row_count(self) -> int:
        """Rows, not counting the notes."""
        return self.table.row_count

    def add(self, notes: list[Text]) -> None:
        """Says something about the row that was added last."""
        self.notes.append(notes)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header, *rows = console.render_lines(self.table, options, pad=False)
        yield from (*header, Segment.line())
        for row, notes in zip(rows, self.notes, strict=True):
            yield from (*row, Segment.line())
            yield from (Padding(note, (0, 0, 0, 2), expand=False) for note in notes)


def job_tables(jobs: Iterable[job_pb2.Job], now: datetime) -> Iterator[NotedTable]:
    """Tables of jobs with what they wait for and what they lost; `now` is what their ages count to."""
    for batch in _batches(jobs):
        several = len({job.tenant for job in batch}) > 1
        noted = NotedTable(table("id", *(["tenant"] if several else []), "name:", "state", "done>", "solved>", "tokens>", "age>"))
        for job in batch:
            progress = job.progress
            noted.table.add_row(
                Text(job.job_id),
                *([Text(one_line(job.tenant))] if several else []),
                _elastic(job.spec.name),
                state_text(job.state),
                f"{progress.problems_done:,}/{progress.problems_total:,}",
                f"{progress.problems_solved:,}" if job.spec.checker else _NONE,
                f"{progress.tokens:,}",
                duration((now - job.create_time.ToDatetime(tzinfo=UTC)).total_seconds()),
            )
            waits = [Text(f"waits: {line}", "yellow") for line in wait_lines(job.waits, now)]
            losses = loss_counts(progress)
            noted.add([*waits, Text(" · ".join(losses), "dim")] if losses else waits)
        yield noted


def result_tables(results: Iterable[job_pb2.Result]) -> Iterator[NotedTable]:
    """Tables of results; why one has failed, and what is odd about one, stands below it."""
    for batch in _batches(results):
        noted = NotedTable(table("index>", "problem:", "outcome", "verdict", "score>", "answer:", "tokens>"))
        for result in batch:
            failed = result.outcome == job_pb2.OUTCOME_FAILED
            noted.table.add_row(
                str(result.problem_index),
                _elastic(result.problem.text),
                outcome_text(result.outcome),
                verdict_text(result.verdict) if result.verdict else _NONE,
                f"{result.score:.2f}" if result.HasField("score") else _NONE,
                _NONE if failed else _elastic(result.answer),
                f"{result.tokens:,}",
            )
            odd = [f"restarted: {result.restarted}"] if result.restarted else []
            notes = [Text(one_line(each), "yellow") for each in (*odd, result.note) if each]
            noted.add([Text(one_line(result.message), "red"), *notes] if failed and result.message else notes)
        yield noted


def table(*headers: str) -> Table:
    """An empty one; columns by header: with `>` at the right edge, with `:` for `_elastic` cells."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(
            header.rstrip(">:"), justify="right" if header.endswith(">") else "left", no_wrap=not header.endswith(":")
        )
    return table


def _elastic(text: str, style: str = "") -> Text:
    """Foreign text that gives way where a terminal is too narrow: rich narrows the columns that may wrap first."""
    return Text(one_line(text), style, no_wrap=True, overflow="ellipsis")


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, ROWS_MAX)):
        yield batch
