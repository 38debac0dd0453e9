import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from queue import SimpleQueue

import pytest
from rich.console import Console

from ramify.cli.output import duration
from ramify.cli.trouble import Look, wait_lines
from ramify.cli.watch import Meter, Untold, follow, summary
from ramify.client import Client
from ramify.v1 import job_pb2
from tests.unit.client.fake_gateway import EPOCH_S, FakeGateway, solved


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client(gateway.address) as connected:
        yield connected


def run_job(gateway: FakeGateway, *, checker: str = "countdown") -> job_pb2.Job:
    problems = [job_pb2.Problem(text="4 5 6 10")] * 4
    fake = gateway.add_job(job_pb2.JobSpec(name="first", checker=checker), problems)
    for done in (1, 2, 3):
        gateway.progress(fake, problems_done=done, problems_solved=done, steps=63 * done, tokens=812 * done)
    failed = job_pb2.Result(problem_index=3, outcome=job_pb2.OUTCOME_FAILED)
    gateway.finish(fake, [*(solved(i, problem) for i, problem in enumerate(problems[:3])), failed])
    return fake.job


def followed(client: Client, *, tick_s: float, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80 if terminal else 1_000)
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += tick_s
        return now_s

    job = follow(client, "job-1", console, clock=clock)
    console.print(summary(job))
    assert job.state == job_pb2.JOB_STATE_DONE
    return out.getvalue()


def test_a_pipe_gets_a_line_a_second_at_most(client: Client, gateway: FakeGateway) -> None:
    run_job(gateway)
    last = "solved 3 of 4 · 1 failed · 16 chains each · 2,436 tokens · 5 s"
    hasty = followed(client, tick_s=0.0).splitlines()
    assert hasty == ["running 0/4 · solved 0 · 0 steps · 0 tokens · 1 s", last]
    slow = followed(client, tick_s=1.0).splitlines()
    assert [line.split(" · ")[0] for line in slow[:-1]] == [f"running {done}/4" for done in range(4)]
    assert "3/4 · solved 3 · 189 steps · 2,436 tokens · 812 tokens/s" in slow[3]
    assert slow[-1] == last
    assert "\x1b" not in "".join(slow)


def test_a_terminal_gets_a_live_display_and_the_summary(client: Client, gateway: FakeGateway) -> None:
    run_job(gateway)
    shown = followed(client, tick_s=0.01, terminal=True)
    assert "first" in shown
    assert "━" in shown
    assert "2,436 tokens" in shown.splitlines()[-1]


def troubled_job(gateway: FakeGateway) -> None:
    fake = gateway.add_job(job_pb2.JobSpec(name="first", checker="countdown"), [job_pb2.Problem(text="4 5 6 10")])
    gateway.notice(fake, job_pb2.NOTICE_KIND_TAKEOVER, "shard:1 took over 32 slots from shard:0", takeovers=1, retries=2)
    gateway.notice(fake, job_pb2.NOTICE_KIND_WAIT, "340 chains wait\x1b[2J for verifier tiny24-prm")
    gateway.finish(fake, [solved(0, fake.problems[0])])


def test_notices_are_lines_in_a_pipe(client: Client, gateway: FakeGateway) -> None:
    troubled_job(gateway)
    running, takeover, waits, last = followed(client, tick_s=0.0).splitlines()
    assert running.startswith("running 0/1")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:02 shard:1 took over 32 slots from shard:0", takeover)
    assert waits.endswith(":03 340 chains wait\N{REPLACEMENT CHARACTER}[2J for verifier tiny24-prm")
    assert last == "solved 1 of 1 · 16 chains each · 812 tokens · 4 s · 2 retries · 1 takeover"


def test_notices_stand_above_the_display_in_a_terminal(client: Client, gateway: FakeGateway) -> None:
    troubled_job(gateway)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in followed(client, tick_s=0.01, terminal=True).splitlines()]
    assert sum(line.endswith(":02 shard:1 took over 32 slots from shard:0") for line in lines) == 1
    assert sum(line.endswith("for verifier tiny24-prm") for line in lines) == 1


def test_the_display_tells_what_is_waited_for_now(gateway: FakeGateway) -> None:
    meter = Meter(run_job(gateway), clock=lambda: 0.0)
    meter.state = job_pb2.JOB_STATE_RUNNING
    wait = job_pb2.Wait(what="verifier tiny24-prm", reason="connection refused", count=1, shard="shard:0")
    meter.update_waits([wait])
    assert shown(meter)[-1] == "waits: 1 chain for verifier tiny24-prm: connection refused"
    assert len(shown(meter)) == 3
    wait.reason *= 10
    assert len(shown(meter)) == 3, "a long line is cut"
    meter.state = job_pb2.JOB_STATE_DONE
    assert len(shown(meter)) == 2


def shown(meter: Meter) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(meter)
    return out.getvalue().splitlines()


def test_a_look_tells_the_waits_of_now_until_it_ends(client: Client, gateway: FakeGateway) -> None:
    fake = gateway.add_job(job_pb2.JobSpec(name="first"), [job_pb2.Problem(text="4 5 6 10")])
    found: SimpleQueue[list[str]] = SimpleQueue()
    with Look(client, "job-1", lambda waits: found.put([wait.what for wait in waits]), interval_s=0.001):
        gateway.wait_for(fake, job_pb2.Wait(what="shard:1", reason="has not been heard of"))
        while found.get(timeout=10) != ["shard:1"]:
            pass
        gateway.wait_for(fake)
        while found.get(timeout=10):
            pass
        gateway.stop()
        while found.get(timeout=10) != [f"the gateway at {gateway.address}"]:
            pass


def test_waits_that_no_shard_tells_are_lines_in_a_pipe_once() -> None:
    out = io.StringIO()
    untold = Untold(Console(file=out, width=1_000))
    silent = job_pb2.Wait(what="shard:1", reason="has not been heard of")
    told = job_pb2.Wait(what="engines", reason="no engine is alive", shard="shard:0")
    for waits in ([told], [told, silent], [silent], [], [silent]):
        untold.tell(waits)
    assert out.getvalue() == "waits: shard:1 has not been heard of\n" * 2


def test_waits_of_several_shards_are_one_line_and_the_longest_counts() -> None:
    def wait(what: str, count: int, since_s: int = 0) -> job_pb2.Wait:
        made = job_pb2.Wait(what=what, reason="overloaded", count=count, shard="shard:1")
        made.since_time.seconds = EPOCH_S + since_s
        return made

    now = datetime.fromtimestamp(EPOCH_S + 20, UTC)
    assert wait_lines([wait("verifier", 3, 8), wait("engine local:0", 1), wait("verifier", 1_000, 5)], now) == [
        "1,003 chains for verifier: overloaded, 15 s",
        "1 chain for engine local:0: overloaded, 20 s",
    ]
    assert wait_lines([wait("shard:1", 0)], now) == ["shard:1 overloaded for 20 s"]
    assert wait_lines([wait("engines", 0)], now) == ["engines: overloaded, 20 s"]
    assert wait_lines([wait(f"engine {i}", i) for i in range(1, 6)], now)[3:] == ["and 2 more"]


def test_summary_without_checker_and_of_a_cancelled_job(gateway: FakeGateway) -> None:
    job = run_job(gateway, checker="")
    assert summary(job).plain == "answered 3 of 4 · 1 failed · 16 chains each · 2,436 tokens · 5 s"
    job.state = job_pb2.JOB_STATE_CANCELLED
    assert summary(job).plain.startswith("cancelled · answered 3 of 4")


def test_the_rate_is_that_of_late() -> None:
    job = job_pb2.Job(state=job_pb2.JOB_STATE_RUNNING)
    job.start_time.seconds = EPOCH_S
    meter = Meter(job, clock=lambda: 0.0)
    assert meter.tokens_per_s() is None
    for second in range(100):
        event = job_pb2.JobEvent(state=job_pb2.JOB_STATE_RUNNING)
        event.time.seconds = EPOCH_S + second
        event.progress.tokens = second if second < 50 else 50 + (second - 50) * 100
        meter.update(event)
    assert meter.tokens_per_s() == 100.0
    assert meter.elapsed_s() == 99.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (38.4, "38 s"), (60, "1 min"), (125, "2 min 5 s"), (11_520, "3 h 12 min"), (180_000, "2 d 2 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
