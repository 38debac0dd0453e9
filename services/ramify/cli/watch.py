"""A job as it goes: a live display in a terminal, lines in a pipe."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ramify.cli.output import counted, duration, one_line, print_json
from ramify.cli.records import as_record
from ramify.cli.tables import state_text
from ramify.cli.trouble import Look, is_untold, loss_counts, notice_line, wait_lines, wait_text
from ramify.client import Client
from ramify.client.spec import word
from ramify.v1 import job_pb2

#: Lines in a pipe come no faster, state changes apart.
LINE_INTERVAL_S = 1.0

#: The rate that is shown is that of so many last seconds.
RATE_WINDOW_S = 10.0

_FRAMES_PER_S = 8

_FINAL_STATES = (job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED)


def follow(client: Client, job_id: str, console: Console, *, clock: Callable[[], float] = time.monotonic) -> job_pb2.Job:
    """Shows a job until it ends, and returns it as it ended; `summary` is the line on what came of it.

    Notices become lines that stay: above the display, or among the lines.

    Args:
        client: connected to the job's gateway.
        job_id: which job.
        console: where to; a terminal gets a live display, anything else lines.
        clock: seconds from anywhere.
    """
    meter = Meter(client.job(job_id), clock)
    events = client.watch(job_id)
    if console.is_terminal:
        display = Live(meter, console=console, refresh_per_second=_FRAMES_PER_S, transient=True, redirect_stdout=False)
        with display as live, Look(client, job_id, meter.update_waits):
            for event in events:
                meter.update(event)
                if event.HasField("notice"):
                    console.print(notice_line(event))
            live.refresh()
    else:
        with Look(client, job_id, Untold(console).tell):
            for line in _lines(meter, events, clock):
                console.print(line)
    return client.job(job_id)


def follow_as_json(client: Client, job_id: str, cursor: int = 0) -> None:
    """One JSON object an event."""
    for event in client.watch(job_id, cursor):
        print_json(as_record(event))


def summary(job: job_pb2.Job) -> Text:
    """What came of a job, on one line: `solved 47 of 50 · 16 chains each · 61,204 tokens · 38 s`."""
    progress = job.progress
    done = progress.problems_done - progress.problems_failed
    verb, count = ("solved", progress.problems_solved) if job.spec.checker else ("answered", done)
    text = Text()
    if job.state != job_pb2.JOB_STATE_DONE:
        text.append_text(state_text(job.state)).append(" · ")
    text.append(f"{verb} {count:,} of {progress.problems_total:,}", "bold")
    if progress.problems_failed:
        text.append(" · ").append(f"{progress.problems_failed:,} failed", "red")
    chains = [counted(job.spec.search.n, "chain") + " each"] if job.spec.search.n else []
    wasted = [f"{progress.wasted_tokens:,} of them wasted"] if progress.wasted_tokens else []
    parts = [*chains, counted(progress.tokens, "token"), *wasted]
    if job.HasField("start_time") and job.HasField("finish_time"):
        parts.append(duration(_seconds(job.finish_time) - _seconds(job.start_time)))
    parts += loss_counts(progress)
    return text.append("".join(f" · {part}" for part in parts))


class Meter:
    """How far a job is and how fast it goes, by its events; renders as the live display."""

    def __init__(self, job: job_pb2.Job, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._name = one_line(job.spec.name) or job.job_id
        self._has_checker = bool(job.spec.checker)
        self._start_s = _seconds(job.start_time if job.HasField("start_time") else job.create_time)
        self._latest: deque[tuple[float, int]] = deque()
        self._event_s = self._start_s
        self._event_clock_s = clock()
        self.state = job.state
        self.progress = job.progress
        self.waits: Sequence[job_pb2.Wait] = job.waits

    def update_waits(self, waits: Sequence[job_pb2.Wait]) -> None:
        """Takes what the job waits for now."""
        self.waits = waits

    def update(self, event: job_pb2.JobEvent) -> None:
        """Takes the next event."""
        if self.state == job_pb2.JOB_STATE_UPLOADING and event.state == job_pb2.JOB_STATE_RUNNING:
            self._start_s = _seconds(event.time)
        self.state = event.state
        self.progress = event.progress
        self._event_s = _seconds(event.time)
        self._event_clock_s = self._clock()
        self._latest.append((self._event_s, event.progress.tokens))
        while self._event_s - self._latest[0][0] > RATE_WINDOW_S and len(self._latest) > 2:
            self._latest.popleft()

    def elapsed_s(self) -> float:
        """Seconds since the job started, going on between events."""
        since_event_s = 0.0 if self.state in _FINAL_STATES else self._clock() - self._event_clock_s
        return self._event_s - self._start_s + since_event_s

    def tokens_per_s(self) -> float | None:
        """Tokens sampled a second of late; None while that can't be told."""
        if not self._latest:
            return None
        (first_s, first), (last_s, last) = self._latest[0], self._latest[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None

    def numbers(self) -> str:
        """What there is to say apart from the state and the problems done."""
        progress, rate = self.progress, self.tokens_per_s()
        parts = [f"solved {progress.problems_solved:,}"] if self._has_checker else []
        if progress.problems_failed:
            parts.append(f"{progress.problems_failed:,} failed")
        parts += [counted(progress.steps, "step"), counted(progress.tokens, "token")]
        if rate is not None:
            parts.append(f"{rate:,.0f} tokens/s")
        return " · ".join([*parts, duration(self.elapsed_s())])

    def done(self) -> str:
        """Problems done of all."""
        return f"{self.progress.problems_done:,}/{self.progress.problems_total:,}"

    def __rich__(self) -> RenderableType:
        total = self.progress.problems_total
        bar = ProgressBar(
            total=total or 1,
            completed=self.progress.problems_done,
            width=None,
            pulse=self.state == job_pb2.JOB_STATE_UPLOADING,
            animation_time=self._clock(),
        )
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True)
        row.add_row(Text(self._name, "bold"), bar, self.done(), state_text(self.state))
        waits = [] if self.state in _FINAL_STATES else wait_lines(self.waits, datetime.now(UTC))
        # One row each: a display that grows and shrinks with the width of its lines would jump.
        lines = [Text(self.numbers(), "dim")]
        if losses := loss_counts(self.progress):
            lines.append(Text(" · ".join(losses), "dim"))
        lines += [Text(f"waits: {line}", "yellow") for line in waits]
        return Group(row, *(Text.assemble(line, no_wrap=True, overflow="ellipsis") for line in lines))


class Untold:
    """Lines on waits that are in no job's history: those that shards don't tell, because they are gone."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: frozenset[tuple[str, str]] = frozenset()

    def tell(self, waits: Sequence[job_pb2.Wait]) -> None:
        """Prints those that are new."""
        silent = {(wait.what, wait.reason): wait for wait in waits if is_untold(wait)}
        for name in sorted(silent.keys() - self._told):
            self._console.print(f"waits: {wait_text(silent[name], datetime.now(UTC))}")
        self._told = frozenset(silent)


def _lines(meter: Meter, events: Iterator[job_pb2.JobEvent], clock: Callable[[], float]) -> Iterator[str | Text]:
    """A line for each notice and at each change of state, and else one a second at most; the summary stands for the end."""
    state, last_s = None, float("-inf")
    for event in events:
        meter.update(event)
        if event.HasField("notice"):
            yield notice_line(event)
            continue
        if event.state in _FINAL_STATES or (event.state == state and clock() - last_s < LINE_INTERVAL_S):
            continue
        state, last_s = event.state, clock()
        parts = [f"{word(job_pb2.JobState.DESCRIPTOR, state)} {meter.done()}", meter.numbers(), *loss_counts(event.progress)]
        yield " · ".join(parts)


def _seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos * 1e-9
