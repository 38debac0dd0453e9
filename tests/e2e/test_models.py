"""Several generators or verifiers in one job, and prompts of its own, on a real system as a user starts it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramify.client import Client
from ramify.scheduler.actors.ensembles import combine
from ramify.scheduler.plan import Verifier
from ramify.v1 import job_pb2
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.chains import Chain
from ramify.verifier.columns import ChainColumns
from ramify.verifier.rules import RULES
from tests.e2e.conftest import MODELS, Up
from tests.e2e.test_system import run_job, trees
from tests.waiting import until

PUZZLES = 12
PRM = {"verifier": "tiny24-prm"}
SEVERAL = {"generators": {"tiny24": 3, "chatty": 1}, "seed": 5, **PRM}
JUDGES = (Verifier("prm-a", 0.7), Verifier("prm-b", 0.3, 1.5, "way"), Verifier("orm", when="end"))


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
    verifiers = [f"tiny24-prm={MODELS / 'prm'}", *(f"{each.model}=simulated" for each in JUDGES)]
    options = [word for each in verifiers for word in ("--verifier-model", each)]
    return Up(home, "--engine", f"onnx:{MODELS / 'generator'}", "--engine", f"onnx:{chatty}", *options)


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


def test_several_verifiers_score_the_steps_of_one_job(up: Up, puzzles: list[str], tmp_path: Path) -> None:
    file = tmp_path / "puzzles.txt"
    file.write_text("\n".join(puzzles[:4]))
    given = ("--verifier", "prm-a=0.7", "--verifier", "prm-b=0.3,temperature=1.5,when=way", "--verifier", "orm,when=end")
    submitted = up.ramify(
        "submit", str(file), "n=8", "keep=4", "max_steps=4", "--generator", "tiny24", *given, "--watch", "--json"
    )
    assert submitted.returncode == 0, submitted.stderr
    job_id = json.loads(submitted.stdout.splitlines()[0])["job_id"]
    with Client(up.address) as client:
        assert len(client.job(job_id).pins.verifier.split(",")) == 3
        trees = [client.tree(job_id, index) for index in range(4)]
    ended = [scored(tree) for tree in trees]
    assert 0 < sum(map(sum, ended)) < sum(map(len, ended))


def scored(tree: job_pb2.Tree) -> list[bool]:
    """Of each step that has the score which it must have, whether its chain ends there."""
    problem = RULES["countdown"].normalise_problem(tree.problem.text)
    steps: dict[int, tuple[str, ...]] = {tree.root_id: ()}
    found = []
    for node in tree.nodes:
        chain = steps[node.node_id] = (*steps[node.parent_id], node.text)
        if node.finish == job_pb2.FINISH_ERROR:
            continue
        columns = ChainColumns.of([Chain(problem, chain)])
        ends = node.finish in (job_pb2.FINISH_END, job_pb2.FINISH_CONTEXT) or node.depth == 4
        judges = [each for each in JUDGES if each.when != ("way" if ends else "end")]
        said = [SimulatedScorer(each.model).score_columns(columns).scores[-1:] for each in judges]
        assert node.score == combine(said, judges)[0]
        found.append(ends)
    return found


def test_a_chat_template_makes_the_prompts_that_the_model_has_seen(up: Up, puzzles: list[str]) -> None:
    """It does what the tiny model's own prompt template does, so the trees are the same."""
    with Client(up.address) as client:
        plain, chat = (run_job(client, puzzles[:4], generator=name, seed=9, **PRM) for name in ("tiny24", "chatty"))
        assert trees(client, plain.job_id, 4) == trees(client, chat.job_id, 4)


def test_a_job_whose_model_has_no_chat_template_says_so_and_others_go_on(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = client.submit(puzzles[:1], generator="tiny24", chat="always", policy="beam", verifier="tiny24-prm")
        assert run_job(client, puzzles[:1], generator="tiny24", **PRM).state == job_pb2.JOB_STATE_DONE
        waits = until(lambda: client.job(job.job_id).waits)
        assert (waits[0].what, waits[0].reason) == (
            "prompt",
            "the job says chat=always, and tiny24 has no chat template: say auto or never",
        )
        client.cancel(job.job_id)


def test_steps_begin_with_the_step_prompt(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = run_job(client, puzzles[:2], generator="tiny24", step_prompt="{step}:", **PRM)
        for index in range(2):
            nodes = client.tree(job.job_id, index).nodes
            assert nodes
            assert all(node.text.startswith(f"{node.depth}:") for node in nodes if node.finish != job_pb2.FINISH_ERROR)
            assert all(len(node.tokens) <= 32 for node in nodes)
