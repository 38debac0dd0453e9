"""A job under way, as its client and its store see it: what it comes to, what it has lost and how long it stood still."""

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy.engine import make_url

from ramify.client import Client, ClientError
from ramify.scheduler.actors.lanes import QUEUE_FACTOR
from ramify.scheduler.slots import SLOTS, slot_of
from ramify.v1 import job_pb2
from tests.faults.system import MODEL, SLOTS_AN_ENGINE, System
from tests.waiting import until

PROBLEMS = 16
POISONED = 5  # index of the problem that may be one
KNOBS: dict[str, Any] = {
    "policy": "beam",
    "n": 16,
    "keep": 4,
    "max_steps": 10,
    "max_step_tokens": 64,
    "generator": "simulated",
    "verifier": MODEL,
    "seed": 11,
}
FIGURES = "RAMIFY_FAULTS_FIGURES"  # names a file to which figures are added, a line of JSON each
LOOK_S = 0.2
END_S = 120.0  # in which a job ends, whatever happens
SEGMENTS = "SELECT segment_id, owner, created_ms, trees FROM segments"
RECONNECT_S = 60.0


def problems(count: int = PROBLEMS, *, poisoned: bool = False) -> list[str]:
    """What is asked."""
    return [f"problem {index}" + (" POISON" if poisoned and index == POISONED else "") for index in range(count)]


ASKED = problems()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job has come to; two runs of one spec must be equal in it to the byte."""

    trees: tuple[bytes, ...]  # the last time that each was asked for
    results: tuple[bytes, ...]
    progress: bytes  # without what has happened to it on its way

    def without(self, problem: int) -> list[list[bytes]]:
        """Trees and results of all problems but one."""
        return [[each for index, each in enumerate(of) if index != problem] for of in (self.trees, self.results)]

    def first(self, count: int) -> tuple[tuple[bytes, ...], ...]:
        """Trees and results of the first problems: they are those of a job that asks no more."""
        return self.trees[:count], self.results[:count]


@dataclass(frozen=True, slots=True)
class Segment:
    """A commit, as the store has it."""

    owner: str
    made_s: float  # on the clock of this machine
    slots: NDArray[np.int64]  # of which it holds something


@dataclass(frozen=True, slots=True)
class Fault:
    """What was known of the system just before it was harmed."""

    at_s: float  # on the clock of this machine
    in_flight: int  # steps that engines had
    uncommitted: int  # steps that were sampled and not durable
    slots: tuple[int, ...]  # that are hit; a shard's, or all


@dataclass(slots=True)
class Run:
    """A job that runs; `end` waits for its end."""

    system: System
    expected_steps: int
    job: job_pb2.Job = field(default_factory=job_pb2.Job)
    events: list[job_pb2.JobEvent] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    sampled: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # rows, at first and last: by engine and pid
    faults: list[Fault] = field(default_factory=list)
    failure: BaseException | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, problems: Sequence[str]) -> None:
        """Submit and watch it."""
        self.look()
        with Client(self.system.address) as client:
            self.job = client.submit(problems, **KNOBS)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._follow)]
        for thread in self._threads:
            thread.start()

    @property
    def steps(self) -> int:
        """That are committed, as far as was heard."""
        return self.events[-1].progress.steps if self.events else 0

    def until(self, share: float) -> None:
        """Wait until a share of all of its steps is committed."""
        until(lambda: self.failure or self.steps >= share * self.expected_steps)
        assert self.failure is None

    def look(self, stats: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take down what engines have sampled so far; how all stands."""
        stats, begun = stats or self.system.stats(), bool(self.sampled)
        for name, engine in stats["engines"].items():
            life, rows = (name, engine["pid"]), engine["rows_sampled"]
            first = 0 if begun else rows  # of a process that comes later, all was for this job
            self.sampled[life] = self.sampled.get(life, (first, 0))[0], rows
        return stats

    def harm(self, shard: str = "") -> Fault:
        """Take down how all stands, just before a fault that hits a shard; or all of it."""
        held = owners(self.system.setup.store_url)
        stats = self.look()
        shells = [each["shell"] for name, each in stats["shards"].items() if each["shell"] and shard in ("", name)]
        slots = [slot for slot, owner in held.items() if not shard or owner.startswith(f"shard:{shard}@")]
        fault = Fault(
            time.time(),
            sum(engine["rows_running"] + engine["rows_waiting"] for engine in stats["engines"].values()),
            sum(shell["uncommitted_steps"] for shell in shells),
            tuple(slots),
        )
        self.faults.append(fault)
        return fault

    def end(self) -> Outcome:
        """Wait for its end; what it has come to. Fails if its history has a gap, a repetition or a step back."""
        for thread in self._threads[:1]:
            thread.join(END_S)
        assert self.failure is None, self.failure
        assert self.events
        assert self.events[-1].state == job_pb2.JOB_STATE_DONE
        assert [event.cursor for event in self.events] == list(range(1, len(self.events) + 1))
        assert all(a.progress.steps <= b.progress.steps for a, b in zip(self.events, self.events[1:], strict=False))
        self._over.set()
        for thread in self._threads:
            thread.join(END_S)
        self.look()
        with Client(self.system.address) as client:
            job = client.job(self.job.job_id)
            assert job.progress == self.events[-1].progress
            return outcome(client, job)

    # --- what it has cost ---------------------------------------------------------------------------------------------

    @property
    def paid_again(self) -> int:
        """Steps that engines have sampled to their end and of which nothing was committed; the same were sampled once more.

        What an engine that was killed had sampled since it was looked at last is not in it: it may be too few by these.
        """
        return sum(last - first for first, last in self.sampled.values()) - self.steps

    def bound(self, shards: int) -> int:
        """Guarantee 6: the most steps that the loss of so many shards may cost: all that may be in flight, and one flush window.

        Each has so many credits at each engine. A window is what a commit held that was being written, and what was gathered
        meanwhile. A shard that got no time on a busy machine, so that its lease ended, is one more that is lost.
        """
        in_flight = QUEUE_FACTOR * SLOTS_AN_ENGINE * self.system.setup.engines
        window = 2 * int(max(np.diff([0, *(event.progress.steps for event in self.events)])))
        return max(shards, self.events[-1].progress.takeovers) * (in_flight + window)

    def standstill_s(self, fault: Fault) -> float:
        """From a fault on, the longest time in which nothing of the slots that it has hit was committed."""
        hit = np.isin(np.arange(SLOTS), fault.slots)
        made = [segment.made_s for segment in self.segments if segment.made_s >= fault.at_s and hit[segment.slots].any()]
        assert made, "of what was hit nothing was committed any more"
        return float(np.diff([fault.at_s, *made]).max())

    def next_s(self, at_s: float) -> float:
        """From a moment on, on the clock of this machine, until something was committed again."""
        return min(segment.made_s for segment in self.segments if segment.made_s >= at_s) - at_s

    def segments_of(self, owner: str) -> set[int]:
        """What an owner has written, as far as it is still there."""
        return {row[0] for row in ask(self.system.setup.store_url, f"SELECT segment_id FROM segments WHERE owner = '{owner}'")}

    def notices(self, kind: job_pb2.NoticeKind.ValueType) -> list[str]:
        """What its history tells of a kind."""
        return [event.notice.text for event in self.events if event.HasField("notice") and event.notice.kind == kind]

    @property
    def told(self) -> str:
        """Everything that its history tells, for a failure's message."""
        at = [(event.progress.steps, event.notice.text) for event in self.events if event.HasField("notice")]
        return "\n".join(["its history:", *(f"after {steps} steps: {text}" for steps, text in at)])

    def report(self, fault: str, **more: Any) -> None:
        """Tell the figures."""
        told = {
            "fault": fault,
            "store": self.system.setup.store_url.partition("+")[0],
            "steps": self.steps,
            "in_flight": [each.in_flight for each in self.faults],
            "uncommitted": [each.uncommitted for each in self.faults],
            "paid_again": self.paid_again,
            "standstill_s": [round(self.standstill_s(each), 2) for each in self.faults],
            **{name: getattr(self.events[-1].progress, name) for name in ("retries", "takeovers")},
            **more,
        }
        line = json.dumps(told)
        print(line)
        if FIGURES in os.environ:
            with open(os.environ[FIGURES], "a") as file:
                file.write(line + "\n")

    # --- threads ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            with Client(self.system.address, reconnect_timeout_s=RECONNECT_S) as client:
                for event in client.watch(self.job.job_id, cursor=len(self.events)):
                    self.events.append(event)
        except BaseException as error:
            self.failure = error

    def _follow(self) -> None:
        after = 0
        while not self._over.wait(LOOK_S):
            try:
                rows = ask(self.system.setup.store_url, f"{SEGMENTS} WHERE segment_id > {after} ORDER BY segment_id")
            except (sqlite3.Error, psycopg.Error):  # it is away
                continue
            for segment_id, owner, made_ms, trees in rows:
                slots = np.unique(slot_of(np.frombuffer(bytes(trees), "<u8")))
                self.segments.append(Segment(owner, made_ms / 1000, slots.astype(np.int64)))
                after = segment_id


@contextlib.contextmanager
def running(system: System, expected_steps: int, asked: Sequence[str] = ASKED) -> Iterator[Run]:
    """A job that runs. It is cancelled if the block fails."""
    run = Run(system, expected_steps)
    run.begin(asked)
    try:
        yield run
    except BaseException:
        with contextlib.suppress(ClientError), Client(run.system.address) as client:
            client.cancel(run.job.job_id)
        raise


def outcome(client: Client, job: job_pb2.Job) -> Outcome:
    """What a job has come to."""
    trees, results = [], []
    for index in range(job.progress.problems_total):
        tree = client.tree(job.job_id, index)
        assert not tree.damage
        tree.job_id = ""
        trees.append(tree.SerializeToString(deterministic=True))
    results = [result.SerializeToString(deterministic=True) for result in client.results(job.job_id)]
    paid = job_pb2.Progress()
    paid.CopyFrom(job.progress)
    for name in ("retries", "takeovers"):
        paid.ClearField(name)
    return Outcome(tuple(trees), tuple(results), paid.SerializeToString(deterministic=True))


def ask(store_url: str, query: str) -> Sequence[tuple[Any, ...]]:
    """Look into a store, past all that is tested."""
    url = make_url(store_url)
    if url.get_backend_name() == "sqlite":
        connection = sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as session:
        return session.execute(query.encode()).fetchall()


def owners(store_url: str) -> dict[int, str]:
    """Who holds which slot."""
    return dict(ask(store_url, "SELECT slot, owner FROM slots"))
