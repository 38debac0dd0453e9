"""What a user does with a running system, and what it answers."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import RAMIFY, Up, ramify

KNOBS = {"policy": "beam", "n": 16, "max_steps": 8, "max_step_tokens": 32, "checker": "countdown"}


def trees(client: Client, job_id: str, count: int) -> list[bytes]:
    """The job's trees as bytes, without the job's name."""
    found = []
    for index in range(count):
        tree = client.tree(job_id, index)
        tree.job_id = ""
        found.append(tree.SerializeToString(deterministic=True))
    return found


def run_job(client: Client, puzzles: list[str], **knobs: object) -> job_pb2.Job:
    """Submit, and wait for the end."""
    job = client.submit(puzzles, **{**KNOBS, **knobs})  # type: ignore[arg-type]
    for _ in client.watch(job.job_id):
        pass
    return client.job(job.job_id)


def test_one_seed_one_forest(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        first, second = (run_job(client, puzzles[:12], seed=7) for _ in range(2))
        other = run_job(client, puzzles[:12], seed=8)
        assert trees(client, first.job_id, 12) == trees(client, second.job_id, 12)
        assert trees(client, first.job_id, 12) != trees(client, other.job_id, 12)


@pytest.mark.parametrize("policy", ["beam", "best_of_n"])
def test_a_job_is_solved_and_every_counter_agrees(up: Up, puzzles: list[str], policy: str) -> None:
    with Client(up.address) as client:
        job = run_job(client, puzzles[:20], policy=policy)
        results = list(client.results(job.job_id))
        nodes = [len(client.tree(job.job_id, index).nodes) for index in range(20)]
    assert job.state == job_pb2.JOB_STATE_DONE
    assert [result.problem_index for result in results] == list(range(20))
    assert job.progress.problems_done == 20
    assert job.progress.problems_solved == sum(result.verdict == job_pb2.VERDICT_CORRECT for result in results) >= 12
    assert job.progress.tokens == sum(result.tokens for result in results)
    assert job.progress.steps == sum(nodes) == sum(result.step_count for result in results)


def test_a_watch_resumes_at_its_cursor_without_gap_or_repetition(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = run_job(client, puzzles[:4])
        cursors = [event.cursor for event in client.watch(job.job_id)]
        rest = [event.cursor for event in client.watch(job.job_id, cursor=cursors[1])]
    assert cursors == list(range(1, len(cursors) + 1))
    assert rest == cursors[2:]


def test_budgets_hold(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = run_job(client, puzzles[:6], tokens_per_problem_max=600)
        results = list(client.results(job.job_id))
    assert all(result.tokens <= 600 for result in results)
    assert job_pb2.OUTCOME_BUDGET in {result.outcome for result in results}


def test_a_cancelled_job_ends(up: Up, puzzles: list[str]) -> None:
    with Client(up.address) as client:
        job = client.submit(puzzles, **KNOBS)  # type: ignore[arg-type]
        client.cancel(job.job_id)
        states = [event.state for event in client.watch(job.job_id)]
    assert states[-1] == job_pb2.JOB_STATE_CANCELLED


def test_submit_results_and_tree_from_the_shell(up: Up, tmp_path: Path, puzzles: list[str]) -> None:
    file = tmp_path / "puzzles.jsonl"
    file.write_text("".join(json.dumps({"id": f"p{i}", "puzzle": text}) + "\n" for i, text in enumerate(puzzles[:5])))
    submitted = up.ramify("submit", str(file), "n=16", "max_steps=8", "max_step_tokens=32", "--checker", "countdown", "--watch")
    assert submitted.returncode == 0, submitted.stderr
    assert "of 5 · 16 chains each" in submitted.stdout
    job_id = json.loads(up.ramify("jobs", "--json").stdout.splitlines()[0])["job_id"]
    results = [json.loads(line) for line in up.ramify("results", job_id, "--json").stdout.splitlines()]
    assert [result["problem"]["id"] for result in results] == [f"p{i}" for i in range(5)]
    shown = up.ramify("tree", job_id, "p0")
    assert shown.returncode == 0, shown.stderr
    assert results[0]["steps"][0] in shown.stdout


BAD = [
    (["n=16", "keep=3"], "4 5 6 10", "keep is 3, but must divide n, which is 16"),
    (["n=16", "keep=4", "branch=5"], "4 5 6 10", "keep*branch is 4*5 = 20, but n is 16"),
    (["nn=16"], "4 5 6 10", "nn"),
    (["--budget-tokens", "0"], "4 5 6 10", "budget"),
    (["--generator", "tiny25"], "4 5 6 10", "this system has tiny24"),
    (["--checker", "countdwn"], "4 5 6 10", "did you mean countdown?"),
    ([], "four five", "is no puzzle"),
]


@pytest.mark.parametrize(("arguments", "line", "says"), BAD)
def test_bad_input_says_what_to_do_and_leaves_nothing(up: Up, tmp_path: Path, arguments: list[str], line: str, says: str) -> None:
    file = tmp_path / "puzzles.txt"
    file.write_text(f"1 2 3 4\n{line}\n")
    with Client(up.address) as client:
        before = [job.job_id for job in client.jobs()]
        failed = up.ramify("submit", str(file), *arguments)
        assert (failed.returncode, failed.stdout) == (2, "")
        assert says in failed.stderr
        assert "Traceback" not in failed.stderr
        assert [job.job_id for job in client.jobs()] == before


def test_an_unknown_job_says_where_to_look(up: Up) -> None:
    for arguments in (["watch", "nope"], ["results", "nope"], ["tree", "nope", "0"], ["cancel", "nope"]):
        failed = up.ramify(*arguments)
        assert failed.returncode == 2
        assert "ramify jobs" in failed.stderr


def test_a_second_up_says_what_to_do(up: Up) -> None:
    failed = ramify("up", "--home", str(up.home), "--no-dashboard")
    assert failed.returncode == 2
    assert "already runs" in failed.stderr
    assert "--home" in failed.stderr


def test_no_gateway_says_what_to_do() -> None:
    failed = ramify("jobs", address="127.0.0.1:1")
    assert failed.returncode == 1
    assert "ramify up" in failed.stderr


def test_ctrl_c_on_a_watch_leaves_the_job_running(up: Up, tmp_path: Path, puzzles: list[str]) -> None:
    file = tmp_path / "puzzles.txt"
    file.write_text("\n".join(puzzles))
    command = [*RAMIFY, "submit", str(file), "max_steps=8", "max_step_tokens=32", "--watch", "--address", up.address]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline()  # it is under way
    assert watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    _, said = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert "ramify watch" in said
    with Client(up.address) as client:
        job = next(iter(client.jobs()))
        assert job.state in (job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_DONE)
        client.cancel(job.job_id)


def test_the_command_has_help(up: Up) -> None:
    shown = subprocess.run([*RAMIFY, "--help"], capture_output=True, text=True, check=True)
    assert all(name in shown.stdout for name in ("up", "submit", "watch", "results", "tree", "cancel", "demo", "bench"))
