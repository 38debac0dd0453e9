"""Simulated engines, with the reward model that goes with them: they need no model, and a problem may kill them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import Up

COUNT = 30
ENGINE = "simulated?crash_on=poison&time_scale=0.02&slots=64"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    system = Up(tmp_path_factory.mktemp("home"), "--engine", ENGINE, "--engine", ENGINE)
    yield system
    assert system.stop() == (0, []), system.said


def test_simulated_engines_need_no_model(simulated: Up, tmp_path: Path) -> None:
    file = tmp_path / "problems.txt"
    file.write_text("What is 1 + 1?\n4 5 6 10\n")
    watched = simulated.ramify("submit", str(file), "n=8", "--watch")
    found: list[Any] = [json.loads(line) for line in simulated.ramify("jobs", "--json").stdout.splitlines()]
    assert "answered 2 of 2 · 8 chains each" in watched.stdout, watched.stdout + watched.stderr
    assert [(job["spec"]["generator"], job["spec"]["verifier"]) for job in found] == [("simulated", "simulated-prm")]


def test_a_problem_that_kills_every_engine_is_set_aside(simulated: Up) -> None:
    """The job goes on: real engines, that really die."""
    with Client(simulated.address) as client:
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
