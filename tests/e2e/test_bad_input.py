"""What can't be: models, prompts, stop strings, endpoints and labels. Each is told where a user looks, and other jobs go on."""

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.e2e.conftest import MODELS, RAMIFY, Up
from tests.unit.engines.completions_server import CompletionsServer, answer

PATIENCE_S = 90
POISONED = 7
NONSENSE = "I am a teapot"
CONTEXT = 200  # tokens, which are bytes
FLEET = f"""
[[engines]]
name = "tiny"
spec = "onnx:{MODELS / "generator"}"

[[engines]]
name = "lines"
count = 2
spec = "simulated?time_scale=0&context_tokens_max={CONTEXT}&step_tokens_max=12&end_probability=0&crash_on=poison"

[[engines]]
name = "teapot"
spec = "openai:URL?attempts_max=2&open_s=3"

[[engines]]
spec = "simulated"
region = "moon"
"""
SIMULATED = ["--generator", "simulated", "--verifier", "prm", "n=4", "max_step_tokens=16"]
TINY = ["--generator", "tiny24", "--verifier", "tiny24-prm", "n=4"]


@dataclass
class House:
    """A system with engines of several kinds, one of which talks nonsense."""

    up: Up
    client: Client
    home: Path
    nonsense: str = ""  # a job for that one: it takes a while until nobody believes in it any more

    def submit(self, problems: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Submit as a user would."""
        file = self.home / "problems.txt"
        file.write_text("".join(f"{problem}\n" for problem in problems))
        return self.up.ramify("submit", str(file), *arguments)

    def run(self, problems: list[str], *arguments: str) -> tuple[str, str, list[job_pb2.Result]]:
        """Submit, and watch to the end; the job's id, what was said, and the results."""
        watched = self.submit(problems, *arguments, "--watch")
        found = re.match(r"job (\w+):", watched.stdout)
        assert found is not None, watched.stdout + watched.stderr
        results = list(self.client.results(found[1]))
        assert watched.returncode == all(result.outcome == job_pb2.OUTCOME_FAILED for result in results), watched.stderr
        return found[1], watched.stdout + watched.stderr, results

    def until_known(self, *models: str) -> None:
        """Wait until there are some models, whose engines may come one after the other."""
        deadline = time.monotonic() + PATIENCE_S
        while f"this system has {', '.join(models)}\n" not in (told := self.submit(["x"], "--generator", "none").stderr):
            assert time.monotonic() < deadline, self.up.said + told

    def good(self) -> None:
        """Other jobs go on, on every good engine."""
        for problems, arguments in (
            (["4 5 6 10"], [*TINY, "max_steps=8"]),
            (["a", "b"], [*SIMULATED, "max_steps=3", "cut=answer"]),
        ):
            _, said, results = self.run(problems, *arguments)
            assert [result.outcome for result in results] == [job_pb2.OUTCOME_ANSWERED] * len(problems), said
            assert not any(result.note for result in results)

    def shown(self, *arguments: str, code: int = 0) -> str:
        """What a command shows in the end."""
        shown = self.up.ramify(*arguments)
        assert shown.returncode == code, shown.stderr
        return shown.stdout + shown.stderr

    def until_shown(self, pattern: str, *arguments: str) -> None:
        """Repeat a command until it shows what a pattern says."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, shown := self.shown(*arguments)):
            assert time.monotonic() < deadline, shown


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("home")
    fleet, models = home / "fleet.toml", [f"tiny24-prm={MODELS / 'prm'}", "prm=simulated"]
    with CompletionsServer() as server, pytest.MonkeyPatch.context() as patch:
        fleet.write_text(FLEET.replace("URL", server.url))
        patch.setenv("COLUMNS", "400")  # what is said is not cut to the width of a terminal
        up = Up(home / "system", "--fleet", str(fleet), *(word for model in models for word in ("--verifier-model", model)))
        server.fault = answer(NONSENSE)  # it is good enough to be described
        try:
            with Client(up.address) as client:
                here = House(up, client, home)
                here.until_known("drawn", "simulated", "tiny24")
                job = client.submit(["a problem"], generator="drawn", verifier="prm", policy="best_of_n", n=4, max_steps=3)
                here.nonsense = job.job_id
                yield here
        finally:
            stopped = up.stop()
        assert stopped == (0, []), up.said


@pytest.mark.parametrize(
    ("role", "name", "says"),
    [
        ("generator", "tiny25", "'tiny25', which is unknown (did you mean tiny24?); this system has drawn, simulated, tiny24"),
        ("verifier", "pram", "'pram', which is unknown (did you mean prm?); this system has prm, tiny24-prm"),
        ("checker", "countdwn", "'countdwn', which is unknown (did you mean countdown?); this system has countdown, math"),
    ],
)
def test_a_model_that_does_not_exist(house: House, role: str, name: str, says: str) -> None:
    before = [job.job_id for job in house.client.jobs()]
    refused = house.submit(["4 5 6 10"], *TINY, f"--{role}", name)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"ramify: spec.{role} is {says}\n"
    assert [job.job_id for job in house.client.jobs()] == before


def test_a_prompt_that_is_too_long_for_the_model(house: House) -> None:
    job, said, (short, long) = house.run(["short", "x" * 300], *SIMULATED, "max_steps=3", "cut=answer")
    assert short.outcome == job_pb2.OUTCOME_ANSWERED
    assert not short.note
    told = "the prompt has 300 tokens, the model's context is 200: give the model a longer context, or a shorter problem"
    assert (long.answer, long.note) == ("", told)
    assert f"\n  {told}\n" in house.shown("results", job)
    job, said, (short, long) = house.run(["short", "x" * 300], *SIMULATED, "max_steps=60")
    assert (long.outcome, long.message) == (job_pb2.OUTCOME_FAILED, told)
    assert "answered 0 of 2 · 2 failed" in said, "chains of the short one have no end"
    assert f"`ramify results {job} --address {house.up.address}` says why" in said or f"`ramify results {job}` says why" in said
    assert short.message == (
        "chains were cut at up to 200 tokens, the model's context is 200: lower max_steps or max_step_tokens, or say cut=answer"
    )
    house.good()


def test_a_chain_that_grows_too_long_ends_and_says_so(house: House) -> None:
    job, _, (result,) = house.run(["short"], *SIMULATED, "max_steps=60", "cut=answer")
    told = "the answer was cut at 200 tokens, the model's context is 200: lower max_steps or max_step_tokens"
    assert result.outcome == job_pb2.OUTCOME_ANSWERED
    assert (result.note, len(result.answer) > 0) == (told, True)
    nodes = house.client.tree(job, 0).nodes
    assert job_pb2.FINISH_CONTEXT in {node.finish for node in nodes}
    assert told in house.shown("results", job)


def test_a_stop_string_that_never_comes(house: House) -> None:
    mend = "say with step= where the model's steps end, or raise max_step_tokens"
    job, said, (result,) = house.run(["4 5 6 10"], *TINY, "step=STOP", "max_steps=2", "max_step_tokens=4")
    assert result.message == f"no step ended with 'STOP', each was cut at max_step_tokens=4: {mend}"
    assert "1 failed" in said
    assert result.message in house.shown("results", job)
    job, _, (result,) = house.run(["4 5 6 10"], *TINY, "step=STOP", "max_steps=2", "max_step_tokens=4", "cut=answer")
    assert result.note == f"no step of the answer ended with 'STOP', they were cut at max_step_tokens=4: {mend}"


def test_a_stop_string_that_an_engine_refuses(house: House) -> None:
    _, said, results = house.run(["a", "b"], *SIMULATED, "step=STOP", "max_steps=3")
    told = "EngineError: the delimiter 'STOP' is no single byte that steps do not hold otherwise"
    assert all(re.fullmatch(rf"lost 5 times: engine lines:[01] failed: {told}", result.message) for result in results), results
    assert "was set aside: lost 5 times" in said
    house.good()


def test_a_label_that_no_node_has(house: House) -> None:
    assert "waits for  moon:0: no node has the label ray.io/region=moon" in house.up.said
    job = house.submit(["a problem"], *SIMULATED, "max_steps=3", "--region", "moon").stdout.strip()
    where = r"waits: 4 chains for engines: simulated is alive in [a-z ]+, and the job allows moon alone; "
    told = f"{where}moon:0: EngineAway: no node has the label ray.io/region=moon"
    house.until_shown(told, "jobs")
    house.until_shown(rf"{job} is running: 0 of 1 problems have a result\n{told}", "results", job)
    nowhere = house.submit(["a problem"], *SIMULATED, "max_steps=3", "--region", "mars").stdout.strip()
    house.until_shown("the job allows mars alone; no engine belongs to mars", "jobs")
    house.good()
    for waiting in (job, nowhere):
        assert "cancelled" in house.shown("cancel", waiting)


def test_an_endpoint_that_answers_nonsense(house: House) -> None:
    said = house.shown("watch", house.nonsense, code=1)
    why = f"fails: its answer is no completion: '{NONSENSE}'"
    assert re.search(
        rf"wait for the engines: no engine with drawn is alive \(teapot:0: EngineAway: http\S+ {why}; it is left", said
    )
    assert re.search(rf"problem 0 was set aside: lost 5 times: engine teapot:0 failed: EngineAway: http\S+ {why}", said)
    assert "answered 0 of 1 · 1 failed" in said
    assert why in house.shown("results", house.nonsense)
    house.good()


def test_a_problem_that_kills_every_engine_is_set_aside(house: House) -> None:
    """The job goes on: real engines, that really die."""
    problems = [f"problem {index}" if index != POISONED else "the poisoned problem" for index in range(30)]
    job, _, results = house.run(problems, *SIMULATED, "max_steps=3", "cut=answer")
    assert [result.problem_index for result in results if result.outcome == job_pb2.OUTCOME_FAILED] == [POISONED]
    message = results[POISONED].message
    assert re.match("lost 5 times: engine lines:[01] failed: Actor(Died|Unavailable)Error", message), message
    progress = house.client.job(job).progress
    assert progress.problems_failed == 1
    assert progress.retries >= 4 * 4, "its own steps, and those of others that were beside them"
    assert all(result.answer for result in results if result.problem_index != POISONED), "nobody else has lost a thing"
    assert all("lost" not in result.message for result in results if result.problem_index != POISONED)
    house.good()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (
            ["--engine", "onnx:/does/not/exist"],
            1,
            "the scheduler did not start: the model folder /does/not/exist lacks config.json",
        ),
        pytest.param(  # it fails where the one above does
            ["--engine", "openai:http://127.0.0.1:9"],
            1,
            "the scheduler did not start: http://127.0.0.1:9 can't be reached: ",
            marks=pytest.mark.faults,
        ),
        (["--engine", "abacus:model"], 2, "no engine is meant by 'abacus:model': it is onnx:FOLDER, vllm:MODEL, openai:URL or"),
        (["--engine", "onnx"], 2, "no engine is meant by 'onnx'"),
        (["--engine", "simulated?slot=3"], 2, "simulated has no option slot (did you mean slots?)"),
        (["--engine", "simulated?slots=many"], 2, "simulated: slots is 'many': input should be a valid integer"),
        (["--fleet", "/does/not/exist"], 2, "the fleet /does/not/exist can't be read: No such file or directory"),
        (["--egnine", "simulated"], 2, "No such option: --egnine"),
    ],
)
def test_a_start_that_can_not_be(tmp_path: Path, options: list[str], code: int, says: str) -> None:
    mark = uuid.uuid4().hex
    command = [*RAMIFY, "up", "--home", str(tmp_path), "--listen", "127.0.0.1:0", "--no-dashboard", *options]
    environment = {**os.environ, "RAMIFY_TEST_MARK": mark}  # which every process has that is started for it
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    assert (ended.returncode, ended.stdout) == (code, "")
    first, *more = ended.stderr.splitlines()
    assert first.startswith(f"ramify: {says}")
    assert more in ([], ["See `ramify up --help`."])
    assert [process for process in psutil.process_iter() if mark in marks(process)] == []


def marks(process: psutil.Process) -> list[str]:
    try:
        return list(process.environ().values())
    except psutil.Error:
        return []
