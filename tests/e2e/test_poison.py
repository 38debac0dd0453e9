"""A problem that kills every engine is set aside, and the job goes on: real engines, that really die."""

from pathlib import Path

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import Up

COUNT = 30


def test_a_problem_that_kills_every_engine_is_set_aside(tmp_path: Path) -> None:
    engine = "simulated?crash_on=poison&time_scale=0.02&slots=64"
    system = Up(tmp_path, "--engine", engine, "--engine", engine, "--verifier-model", "prm=simulated")
    with Client(system.address) as client:
        texts = [f"problem {index}" if index != 7 else "the poisoned problem" for index in range(COUNT)]
        job = client.submit(texts, policy="best_of_n", n=8, max_steps=4, max_step_tokens=64, cut="answer")
        for _ in client.watch(job.job_id):
            pass
        job, results = client.job(job.job_id), list(client.results(job.job_id))
    assert job.state == job_pb2.JOB_STATE_DONE
    assert [result.problem_index for result in results if result.outcome == job_pb2.OUTCOME_FAILED] == [7]
    message = results[7].message
    assert message.startswith("lost 5 times: engine local:"), message
    assert "failed: ActorDiedError" in message or "failed: ActorUnavailableError" in message, message
    assert job.progress.problems_failed == 1
    assert job.progress.retries >= 4 * 8, "its own steps, and those of others that were beside them"
    assert all(result.answer for result in results if result.problem_index != 7), "nobody else has lost a thing"
    assert all("lost" not in result.message for result in results if result.problem_index != 7)
    code, left = system.stop()
    assert (code, left) == (0, [])
