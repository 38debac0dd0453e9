"""Words for what goes wrong on a job's way: what it waits for, what was lost and made up for, notices."""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from ramify.cli.output import counted, duration, one_line
from ramify.client import Client, ClientError, Unavailable
from ramify.v1 import job_pb2

#: Waits of one job that are told; the others are counted.
WAITS_MAX = 3

#: What a job waits for is asked so often while it is watched.
LOOK_INTERVAL_S = 2.0

_NOTICE_STYLES = {
    job_pb2.NOTICE_KIND_TAKEOVER: "yellow",
    job_pb2.NOTICE_KIND_RESTART: "red",
    job_pb2.NOTICE_KIND_SET_ASIDE: "red",
    job_pb2.NOTICE_KIND_WAIT: "yellow",
    job_pb2.NOTICE_KIND_RESUMED: "green",
}


def wait_lines(waits: Iterable[job_pb2.Wait], now: datetime) -> list[str]:
    """A line for each thing that is waited for, the most chains first: `340 chains for verifier: overloaded, 12 s`.

    What several shards wait for alike is one line.
    """
    merged: dict[tuple[str, str], job_pb2.Wait] = {}
    for wait in waits:
        same = merged.setdefault((wait.what, wait.reason), job_pb2.Wait(what=wait.what, reason=wait.reason, shard=wait.shard))
        same.count += wait.count
        if wait.HasField("since_time") and (not same.HasField("since_time") or _earlier(wait, same)):
            same.since_time.CopyFrom(wait.since_time)
    ordered = sorted(merged.values(), key=lambda wait: (-wait.count, wait.what, wait.reason))
    lines = [wait_text(wait, now) for wait in ordered[:WAITS_MAX]]
    return [*lines, f"and {len(ordered) - WAITS_MAX} more"] if len(ordered) > WAITS_MAX else lines


def wait_text(wait: job_pb2.Wait, now: datetime) -> str:
    """One wait; one that no shard tells is a sentence: `shard:1 has not been heard of for 20 s`."""
    since = wait.since_time.ToDatetime(tzinfo=UTC) if wait.HasField("since_time") else None
    lasts = duration((now - since).total_seconds()) if since else ""
    what, reason = one_line(wait.what), one_line(wait.reason)
    if is_untold(wait):
        return f"{what} {reason}" + (f" for {lasts}" if lasts else "")
    count = f"{counted(wait.count, 'chain')} for " if wait.count else ""
    return f"{count}{what}: {reason}" + (f", {lasts}" if lasts else "")


def is_untold(wait: job_pb2.Wait) -> bool:
    """Whether no shard tells it, and so no event of the job's history: it is for a shard, or for all of them."""
    return wait.shard in ("", wait.what)


def loss_counts(progress: job_pb2.Progress) -> list[str]:
    """`12 retries`, `1 takeover`, `2 restarted`: those that are not zero."""
    retries = f"{progress.retries:,} {'retry' if progress.retries == 1 else 'retries'}"
    counts = {
        retries: progress.retries,
        counted(progress.takeovers, "takeover"): progress.takeovers,
        f"{progress.restarts:,} restarted": progress.restarts,
    }
    return [text for text, count in counts.items() if count]


def notice_line(event: job_pb2.JobEvent) -> Text:
    """`14:02:31 shard:1 took over 32 slots from shard:0, whose lease had ended`; this place's time."""
    local = event.time.ToDatetime(tzinfo=UTC).astimezone()
    when = f"{local:%H:%M:%S}" if local.date() == datetime.now(local.tzinfo).date() else f"{local:%Y-%m-%d %H:%M:%S}"
    return Text.assemble((f"{when} ", "dim"), (one_line(event.notice.text), _NOTICE_STYLES.get(event.notice.kind, "")))


class Look:
    """A context manager in which another thread asks now and then what a job waits for, and tells.

    A gateway that is away is waited for too. Other errors are left to the calls of whoever watches.
    """

    def __init__(
        self, client: Client, job_id: str, tell: Callable[[Sequence[job_pb2.Wait]], None], interval_s: float = LOOK_INTERVAL_S
    ) -> None:
        """Ask `client` every `interval_s` seconds; `tell` is called in the other thread, with all waits that there are."""
        self._client, self._job_id, self._tell, self._interval_s = client, job_id, tell, interval_s
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True, name="waits").start()  # not awaited: a call may take its time
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            with suppress(ClientError, ValueError):  # which gRPC raises for a channel that was closed meanwhile
                waits = self._ask()
                if not self._ended.is_set():
                    self._tell(waits)

    def _ask(self) -> Sequence[job_pb2.Wait]:
        try:
            return self._client.job(self._job_id).waits
        except Unavailable:
            return [job_pb2.Wait(what=f"the gateway at {self._client.address}", reason="does not answer")]


def _earlier(one: job_pb2.Wait, other: job_pb2.Wait) -> bool:
    return _order(one.since_time) < _order(other.since_time)


def _order(timestamp: Timestamp) -> tuple[int, int]:
    return timestamp.seconds, timestamp.nanos
