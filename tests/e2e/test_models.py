"""Several models in one job, and prompts of its own, on a real system as a user starts it."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import MODELS, Up
from tests.e2e.test_system import run_job, trees

PUZZLES = 12
SEVERAL = {"generators": {"tiny24": 3, "chatty": 1}, "seed": 5}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generator under another name, with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(MODELS / "generator", folder)
    said = json.loads((folder / "ramify.json").read_text())
    del said["prompt_template"]
    (folder / "ramify.json").write_text(json.dumps(said | {"name": "chatty"}))
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'] + '\n' }}"
    )
    return folder


def start(home: Path, chatty: Path) -> Up:
    return Up(home, "--engine", f"onnx:{MODELS / 'generator'}", "--engine", f"onnx:{chatty}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def up(home: Path, chatty: Path) -> Iterator[Up]:
    system = start(home, chatty)
    yield system
    code, left = system.stop()
    assert (code, left) == (0, []), system.said


def test_two_models_write_the_trees_of_one_job(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job, again = (run_job(client, puzzles[:PUZZLES], **SEVERAL) for _ in range(2))
        assert len(job.pins.generator.split(",")) == 2
        wrote = [node.generator for index in range(PUZZLES) for node in client.tree(job.job_id, index).nodes]
        assert 2 < wrote.count("tiny24") / wrote.count("chatty") < 4.5
        assert trees(client, job.job_id, PUZZLES) == trees(client, again.job_id, PUZZLES)
        assert all(len(result.generators) == len(result.steps) for result in client.results(job.job_id))
    shown = up.ramify("tree", job.job_id, "0").stdout
    assert "(chatty)" in shown
    assert "(tiny24)" in shown


def test_a_chat_template_makes_the_prompts_that_the_model_has_seen(up: Up, puzzles: list[str]) -> None:
    """It does what the tiny model's own prompt template does, so the trees are the same."""
    with Client(up.address) as client:
        plain, chat = (run_job(client, puzzles[:4], generator=name, seed=9) for name in ("tiny24", "chatty"))
        assert trees(client, plain.job_id, 4) == trees(client, chat.job_id, 4)


def test_a_job_whose_model_has_no_chat_template_says_so_and_others_go_on(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = client.submit(puzzles[:1], generator="tiny24", chat="always", policy="beam")
        assert run_job(client, puzzles[:1], generator="tiny24").state == job_pb2.JOB_STATE_DONE
        end_s = time.monotonic() + 60
        while not (waits := client.job(job.job_id).waits):
            assert time.monotonic() < end_s, "it does not say what it waits for"
            time.sleep(0.1)
        assert (waits[0].what, waits[0].reason) == (
            "prompt",
            "the job says chat=always, and tiny24 has no chat template: say auto or never",
        )
        client.cancel(job.job_id)


def test_steps_begin_with_the_step_prompt(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = run_job(client, puzzles[:2], generator="tiny24", step_prompt="{step}:")
        for index in range(2):
            nodes = client.tree(job.job_id, index).nodes
            assert nodes
            assert all(node.text.startswith(f"{node.depth}:") for node in nodes if node.finish != job_pb2.FINISH_ERROR)
            assert all(len(node.tokens) <= 32 for node in nodes)
