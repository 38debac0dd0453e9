import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from ramify.cli.output import duration
from ramify.cli.watch import Meter, follow, summary
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
