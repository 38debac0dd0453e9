"""`ramify up` with a vllm engine, as a user starts it."""

from collections.abc import Iterator

import psutil
import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import MODELS, Up
from tests.vllm.conftest import SPEC

PUZZLES = (MODELS / "heldout.txt").read_text().splitlines()[::40]
KNOBS = {"policy": "beam", "n": 16, "keep": 8, "max_steps": 8, "max_step_tokens": 32, "checker": "countdown"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    system = Up(tmp_path_factory.mktemp("home"), "--engine", SPEC)
    yield system
    code, left = system.stop()
    assert code == 0, system.said
    assert left == []


def solve(up: Up, seed: int) -> job_pb2.Job:
    with Client(up.address) as client:
        job = client.submit(PUZZLES, **KNOBS, seed=seed)  # type: ignore[arg-type]
        for _ in client.watch(job.job_id):
            pass
        return client.job(job.job_id)


def cores(up: Up) -> list[psutil.Process]:
    """The processes of vLLM's that hold the model."""
    return [process for process in up.processes() if "EngineCore" in process.name() + " ".join(process.cmdline())]


def test_puzzles_are_solved(up: Up) -> None:
    job = solve(up, seed=1)
    assert job.state == job_pb2.JOB_STATE_DONE
    assert job.progress.problems_done == len(PUZZLES) == 5
    assert job.progress.problems_solved >= 3


def test_an_engine_that_dies_starts_anew(up: Up) -> None:
    (core,) = cores(up)
    core.kill()
    job = solve(up, seed=2)
    assert job.progress.problems_done == 5
    (fresh,) = cores(up)
    assert fresh.pid != core.pid


def test_a_model_does_not_outlive_its_engine(up: Up) -> None:
    (core,) = cores(up)
    actor, workers = core.parent(), core.children(recursive=True)
    assert actor is not None
    assert workers
    actor.kill()
    _, alive = psutil.wait_procs([core, *workers], timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert solve(up, seed=3).progress.problems_done == 5
