"""A job survives the death of every process, and nothing of it is paid for twice."""

import signal
from pathlib import Path

import psutil
import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import Up
from tests.e2e.test_system import KNOBS, run_job, trees

COUNT = 60


def test_a_job_goes_on_after_every_process_was_killed(tmp_path: Path, puzzles: list[str]) -> None:
    """SIGKILL of everything in the middle of a job: `ramify up` again, and it ends as it would have ended."""
    first = Up(tmp_path)
    with Client(first.address) as client:
        undisturbed = run_job(client, puzzles[:COUNT])
        expected = trees(client, undisturbed.job_id, COUNT)
        job = client.submit(puzzles[:COUNT], **KNOBS)  # type: ignore[arg-type]
        for event in client.watch(job.job_id):
            if event.progress.steps * 2 > undisturbed.progress.steps:
                break
    first.kill_everything()

    second = Up(tmp_path)
    with Client(second.address) as client:
        before = event.progress
        cursors = []
        for event in client.watch(job.job_id):
            cursors.append(event.cursor)
            assert event.progress.steps >= before.steps or event.cursor <= len(cursors), "counters never fall"
        job = client.job(job.job_id)
        assert job.state == job_pb2.JOB_STATE_DONE
        assert cursors == list(range(1, len(cursors) + 1))
        assert trees(client, job.job_id, COUNT) == expected
        # Committed steps are counted when they are committed: had one been sampled and committed again, the sums would differ.
        assert job.progress == undisturbed.progress
    code, left = second.stop(signal.SIGTERM)
    assert (code, left) == (0, [])


@pytest.mark.parametrize("victim", ["ray::ShardActor", "ray::EngineActor", "ramify.verifier", "ramify.gateway"])
def test_a_job_goes_on_after_one_process_was_killed(up: Up, puzzles: list[str], victim: str) -> None:
    """SIGKILL of one part in the middle of a job: it comes back by itself, and the trees are those of an undisturbed run."""
    count = 30
    with Client(up.address) as client:
        undisturbed = run_job(client, puzzles[:count], seed=3)
        job = client.submit(puzzles[:count], **KNOBS, seed=3)  # type: ignore[arg-type]
        for event in client.watch(job.job_id):
            if event.progress.steps * 2 > undisturbed.progress.steps:
                break
        process = next(process for process in up.processes() if victim in command_line(process))
        process.kill()
        for event in client.watch(job.job_id, cursor=event.cursor):
            pass
        assert trees(client, job.job_id, count) == trees(client, undisturbed.job_id, count)
        assert event.progress == undisturbed.progress


def command_line(process: psutil.Process) -> str:
    """The process's command line; empty if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_ctrl_c_in_the_middle_of_a_job_loses_nothing(tmp_path: Path, puzzles: list[str]) -> None:
    first = Up(tmp_path)
    with Client(first.address) as client:
        job = client.submit(puzzles[:COUNT], **KNOBS)  # type: ignore[arg-type]
        for event in client.watch(job.job_id):
            if event.progress.steps > 500:
                break
    code, left = first.stop(signal.SIGINT)
    assert (code, left) == (0, [])

    second = Up(tmp_path)
    with Client(second.address) as client:
        for event in client.watch(job.job_id):
            pass
        assert event.state == job_pb2.JOB_STATE_DONE
        assert event.progress.problems_done == COUNT
    second.stop()
