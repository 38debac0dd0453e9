"""A job survives the death of every process, and nothing of it is paid for twice."""

import signal
from pathlib import Path

import psutil
import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import Up
from tests.e2e.test_system import KNOBS, run_job, trees

COUNT = 16


def test_a_job_goes_on_after_a_kill_of_everything_and_after_ctrl_c(tmp_path: Path, puzzles: list[str]) -> None:
    """Either in the middle of a job: `ramify up` again, and it ends as it would have ended."""
    first = Up(tmp_path, "--shards", "2")
    with Client(first.address) as client:
        undisturbed = run_job(client, puzzles[:COUNT])
        expected = trees(client, undisturbed.job_id, COUNT)
        job = client.submit(puzzles[:COUNT], **KNOBS)  # type: ignore[arg-type]
        before = half_way(client, job, undisturbed)
    first.kill_everything()

    second = Up(tmp_path, "--shards", "2")
    with Client(second.address) as client:
        events = list(client.watch(job.job_id))
        job = client.job(job.job_id)
        assert job.state == job_pb2.JOB_STATE_DONE
        assert [event.cursor for event in events] == list(range(1, len(events) + 1))
        assert before in events, "what was seen before the crash is history after it"
        assert trees(client, job.job_id, COUNT) == expected
        # Committed steps are counted when they are committed: had one been sampled and committed again, the sums would differ.
        assert paid(job.progress) == paid(undisturbed.progress)
        other = client.submit(puzzles[:COUNT], **KNOBS)  # type: ignore[arg-type]
        half_way(client, other, undisturbed)
    assert second.stop(signal.SIGINT) == (0, [])

    third = Up(tmp_path)
    with Client(third.address) as client:
        *_, last = client.watch(other.job_id)
        assert last.state == job_pb2.JOB_STATE_DONE
        assert trees(client, other.job_id, COUNT) == expected
        assert paid(last.progress) == paid(undisturbed.progress)
    assert third.stop(signal.SIGTERM) == (0, [])


IN_FAULTS = pytest.mark.faults  # tests/faults does it too, with engines that are simulated


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("ray::ShardActor", marks=IN_FAULTS),
        pytest.param("ray::EngineActor", marks=IN_FAULTS),
        "ramify.verifier",
        "ramify.gateway",
    ],
)
def test_a_job_goes_on_after_one_process_was_killed(up: Up, puzzles: list[str], victim: str) -> None:
    """SIGKILL of one part in the middle of a job: it comes back by itself, and the trees are those of an undisturbed run."""
    count = 12
    with Client(up.address) as client:
        undisturbed = run_job(client, puzzles[:count], seed=3)
        job = client.submit(puzzles[:count], **KNOBS, seed=3)  # type: ignore[arg-type]
        process = next(process for process in up.processes() if victim in command_line(process))
        events = []
        for event in client.watch(job.job_id):  # which goes on by itself if it is the gateway that dies
            events.append(event)
            if event.progress.steps * 2 > undisturbed.progress.steps and process.is_running():
                process.kill()
                process.wait()
        assert trees(client, job.job_id, count) == trees(client, undisturbed.job_id, count)
        assert [event.cursor for event in events] == list(range(1, len(events) + 1))
        assert paid(events[-1].progress) == paid(undisturbed.progress)


@IN_FAULTS
def test_shards_share_the_trees_and_one_takes_over_what_another_had(tmp_path: Path, puzzles: list[str]) -> None:
    """SIGKILL of one of two shards in the middle of a job."""
    system = Up(tmp_path, "--shards", "2", "--lease-s", "3")
    with Client(system.address) as client:
        undisturbed = run_job(client, puzzles[:COUNT])
        job = client.submit(puzzles[:COUNT], **KNOBS)  # type: ignore[arg-type]
        half_way(client, job, undisturbed)
        victims = [process for process in system.processes() if "ray::ShardActor" in command_line(process)]
        assert len(victims) == 2
        victims[0].kill()
        for _ in client.watch(job.job_id):
            pass
        job = client.job(job.job_id)
        assert job.state == job_pb2.JOB_STATE_DONE
        assert trees(client, job.job_id, COUNT) == trees(client, undisturbed.job_id, COUNT)
        assert paid(job.progress) == paid(undisturbed.progress)
        assert job.progress.takeovers >= 1, "by the other shard, by its own successor, or by both: a few slots each"
    code, left = system.stop()
    assert (code, left) == (0, [])


def paid(progress: job_pb2.Progress) -> job_pb2.Progress:
    """What a job has cost and come to, without what has happened to it."""
    found = job_pb2.Progress()
    found.CopyFrom(progress)
    for name in ("retries", "takeovers"):
        found.ClearField(name)
    return found


def half_way(client: Client, job: job_pb2.Job, undisturbed: job_pb2.Job) -> job_pb2.JobEvent:
    """Wait until a job has half the steps of one that was not disturbed."""
    return next(event for event in client.watch(job.job_id) if event.progress.steps * 2 > undisturbed.progress.steps)


def command_line(process: psutil.Process) -> str:
    """The process's command line; empty if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
