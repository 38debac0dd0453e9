import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from ramify.v1 import job_pb2
from tests.unit.cli.conftest import Ramify
from tests.unit.cli.trees import beam_tree
from tests.unit.client.fake_gateway import EPOCH_S, FakeGateway, FakeJob, solved


def add_job(gateway: FakeGateway, *, finished: bool = True, count: int = 3) -> FakeJob:
    problems = [job_pb2.Problem(text=f"4 5 6 {10 + i}", id=f"p{10 + i}") for i in range(count)]
    fake = gateway.add_job(job_pb2.JobSpec(name="first", checker="countdown"), problems)
    if finished:
        gateway.finish(fake, [solved(i, problem) for i, problem in enumerate(problems)])
    return fake


def records(lines: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.splitlines()]


def test_submit_sends_problems_and_spec(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    result = ramify(
        "submit", puzzles, "n=8", "temperature=1.2", "aggregate=min", r"step=\n", "--policy", "best_of_n",
        "--generator", "tiny24", "--verifier", "tiny24-prm", "--checker", "countdown", "--seed", "7",
        "--budget-tokens", "1000", "--budget-tokens-per-problem", "100", "--budget-seconds", "60",
        "--budget-steps", "500", "--budget-steps-per-problem", "50",
        "--name", "first", "--request-id", "mine",
    )  # fmt: skip
    assert result == (0, "job-1\n", "")
    fake = gateway.jobs["job-1"]
    assert [(p.id, p.text) for p in fake.problems] == [("p10", "4 5 6 10"), ("p11", "4 5 6 11"), ("p12", "4 5 6 12")]
    expected = job_pb2.JobSpec(name="first", generator="tiny24", verifier="tiny24-prm", checker="countdown")
    expected.search.policy = "best_of_n"
    expected.search.n = 8
    expected.search.temperature = 1.2
    expected.search.aggregate = job_pb2.AGGREGATE_MIN
    expected.search.step.delimiter = "\n"
    expected.search.seed = 7
    expected.budget.tokens_max = 1000
    expected.budget.tokens_per_problem_max = 100
    expected.budget.seconds_max = 60
    expected.budget.steps_max = 500
    expected.budget.steps_per_problem_max = 50
    assert fake.asked_spec == expected
    assert fake.job.request_id == "mine"


def test_submit_names_several_verifiers(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    several = ("--verifier", "a=0.7", "--verifier", "b=0.3,temperature=1.5", "--verifier", "orm,when=end")
    assert ramify("submit", puzzles, *several).code == 0
    a, b, orm = gateway.jobs["job-1"].asked_spec.verifiers
    assert (a, b) == (job_pb2.Verifier(model="a", weight=0.7), job_pb2.Verifier(model="b", weight=0.3, temperature=1.5))
    assert orm == job_pb2.Verifier(model="orm", when=job_pb2.WHEN_RULE_END)
    assert ramify("submit", puzzles, "--verifier", "a,temperature=2").code == 0
    assert [*gateway.jobs["job-2"].asked_spec.verifiers] == [job_pb2.Verifier(model="a", temperature=2)]


@pytest.mark.parametrize("text", ["a,b", "a,when=end,when=way", "a,model=b", "a=2,weight=3"])
def test_a_verifier_of_which_nonsense_is_said(ramify: Ramify, gateway: FakeGateway, puzzles: Path, text: str) -> None:
    result = ramify("submit", puzzles, "--verifier", text)
    assert result.code == 2
    assert f"--verifier {text}: after the model come temperature=T and when=always|way|end, once each" in result.err
    assert not gateway.jobs


def test_submit_with_the_knobs_of_another_system(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    result = ramify("submit", puzzles, "n=16", "beam_width=4", r"step=\n", "--knobs-from", "search-and-learn")
    assert (result.code, result.out) == (0, "job-1\n")
    assert result.err.startswith("search-and-learn n=16 beam_width=4 step=\\n -> policy=beam n=16 keep=4 branch=4 ")
    search = gateway.jobs["job-1"].asked_spec.search
    assert (search.policy, search.n, search.keep, search.branch, search.step.delimiter) == ("beam", 16, 4, 4, "\n")


@pytest.mark.parametrize(
    ("options", "generator", "several"),
    [
        ([], "", []),
        (["a"], "a", []),
        (["a=b"], "a=b", []),
        (["a=3", "b"], "", [("a", 3.0), ("b", 1.0)]),
        (["org/a:1=0.25", "b=1"], "", [("org/a:1", 0.25), ("b", 1.0)]),
    ],
)
def test_submit_names_one_generator_or_several(
    ramify: Ramify, gateway: FakeGateway, puzzles: Path, options: list[str], generator: str, several: list[tuple[str, float]]
) -> None:
    ramify("submit", puzzles, *(part for each in options for part in ("--generator", each)))
    (job,) = gateway.jobs.values()
    assert job.asked_spec.generator == generator
    assert [(each.model, each.weight) for each in job.asked_spec.generators] == several


def test_submit_takes_no_generator_twice(ramify: Ramify, puzzles: Path) -> None:
    result = ramify("submit", puzzles, "--generator", "a=3", "--generator", "a")
    assert (result.code, result.err) == (2, "ramify: --generator a is given twice: add up its weights\n")


def test_submit_sends_prompt_settings(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    ramify(
        "submit", puzzles, "--system", r"use \boxed{}", "--prompt-template", r"{problem}\times", "--chat", "always",
        "--step-prompt", r"\n## {step}: ", "--thoughts-end", "</t>",
    )  # fmt: skip
    (job,) = gateway.jobs.values()
    assert job.asked_spec.prompt == job_pb2.Prompt(
        system=r"use \boxed{}",
        template=r"{problem}\times",
        chat=job_pb2.CHAT_RULE_ALWAYS,
        step="\n## {step}: ",
        thoughts_end="</t>",
    )


def test_submit_watches_if_told(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    result = ramify("submit", puzzles, "--watch", "--checker", "countdown")
    assert result.out.splitlines() == [
        "job job-1: 3 problems",
        "running 0/3 · solved 0 · 0 steps · 0 tokens · 1 s",
        "solved 3 of 3 · 16 chains each · 2,436 tokens · 2 s",
    ]


def test_submit_as_json(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    job, *events = records(ramify("submit", puzzles, "--json", "--watch").out)
    assert (job["job_id"], job["state"]) == ("job-1", "done")
    assert [(event["cursor"], event["state"]) for event in events] == [(1, "running"), (2, "done")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kep=4"], "there is no knob kep; did you mean keep? there are policy, n, keep, branch"),
        (["name=x"], "there is no knob name; there are policy"),
        (["n=many"], "n is a whole number from 0 to 4,294,967,295, not 'many'"),
        (["answer=first"], "answer is one of best, vote, weighted_vote, not 'first'"),
        (["n"], "a knob is KNOB=VALUE, such as n=16, not 'n'"),
        (["n=4", "n=8"], "n is given twice: 4 and 8"),
        (["policy=beam", "--policy", "beam"], "policy is given twice: beam and beam"),
        (["--field", "x"], "--field is TARGET=NAME"),
        (["--format", "xml"], "--format, one of jsonl, csv, parquet, txt"),
        (["--budget-tokens", "0"], "'--budget-tokens': Input should be greater than or equal to 1"),
        (["--budget-steps", "0"], "'--budget-steps': Input should be greater than or equal to 1"),
        (["--knobs-from", "search-and-lern", "n=4"], "there is no peer search-and-lern; did you mean search-and-learn?"),
        (["--knobs-from", "its_hub", "beam_with=4"], "its_hub has no knob beam_with; did you mean beam_width?"),
        (["--knobs-from", "search-and-learn", "--policy", "beam"], "the knobs are those of search-and-learn, and so is the"),
        (["--nope"], "No such option"),
    ],
)
def test_wrong_arguments_make_no_job(
    ramify: Ramify, gateway: FakeGateway, puzzles: Path, arguments: list[str], message: str
) -> None:
    result = ramify("submit", puzzles, *arguments)
    assert result.code == 2
    assert not result.out
    assert message in result.err
    assert len(result.err.splitlines()) <= 2
    assert not gateway.jobs


def test_a_fault_at_the_end_of_a_file_makes_no_job(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    with puzzles.open("a") as file:
        file.write("broken")
    result = ramify("submit", puzzles)
    assert (result.code, result.out) == (2, "")
    assert "puzzles.jsonl, line 4: column 1: not JSON" in result.err
    assert not gateway.requests


def test_the_gateways_objection_is_shown(ramify: Ramify, gateway: FakeGateway, puzzles: Path) -> None:
    gateway.faults.answer = (grpc.StatusCode.INVALID_ARGUMENT, "keep * branch is 12 and n is 16; make them equal")
    assert ramify("submit", puzzles) == (2, "", "ramify: keep * branch is 12 and n is 16; make them equal\n")
    gateway.faults.answer = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many jobs; try again in 3 s")
    assert ramify("submit", puzzles) == (1, "", "ramify: too many jobs; try again in 3 s\n")


def test_jobs(ramify: Ramify, gateway: FakeGateway) -> None:
    assert ramify("jobs") == (0, "", "no jobs\n")
    add_job(gateway)
    add_job(gateway, finished=False)
    header, running, done = ramify("jobs").out.splitlines()
    assert header.split() == ["id", "name", "state", "done", "solved", "tokens", "age"]
    assert running.split()[:6] == ["job-2", "first", "running", "0/3", "0", "0"]
    assert done.split()[:6] == ["job-1", "first", "done", "3/3", "3", "2,436"]
    (record,) = records(ramify("jobs", "--json", "--state", "done").out)
    assert record["job_id"] == "job-1"
    assert record["progress"] == {
        "problems_total": 3, "problems_done": 3, "problems_solved": 3, "problems_failed": 0, "steps": 189,
        "tokens": 2436, "wasted_tokens": 0, "retries": 0, "takeovers": 0, "restarts": 0,
    }  # fmt: skip
    assert ramify("jobs", "--limit", "1").err == "the newest 1; --limit shows more\n"
    assert ramify("jobs", "--state", "cancelled").err == "no job is cancelled\n"
    assert ramify("jobs", "--state", "x").err == ("ramify: --state is one of uploading, running, done, cancelled, not 'x'\n")


def test_jobs_say_what_they_wait_for_and_what_they_lost(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway, finished=False)
    add_job(gateway)
    gateway.notice(fake, job_pb2.NOTICE_KIND_TAKEOVER, "shard:1 took over", retries=12, takeovers=1)
    gateway.wait_for(fake, verifier_wait(340), job_pb2.Wait(what="shard:1", reason="has not\x1b been heard of"))
    _, done, running, *notes = ramify("jobs").out.splitlines()
    assert (done.split()[0], running.split()[0]) == ("job-2", "job-1")
    assert re.fullmatch(r"  waits: 340 chains for verifier tiny24-prm: connection refused, \d.*", notes[0])
    assert notes[1:] == ["  waits: shard:1 has not\N{REPLACEMENT CHARACTER} been heard of", "  12 retries · 1 takeover"]
    record = records(ramify("jobs", "--json").out)[1]
    assert record["waits"] == [
        {
            "what": "verifier tiny24-prm", "reason": "connection refused", "count": 340, "since_time": "2026-01-01T00:00:00Z",
            "shard": "shard:0",
        },
        {"what": "shard:1", "reason": "has not\x1b been heard of", "count": 0, "since_time": None, "shard": ""},
    ]  # fmt: skip


def verifier_wait(count: int) -> job_pb2.Wait:
    wait = job_pb2.Wait(what="verifier tiny24-prm", reason="connection refused", count=count, shard="shard:0")
    wait.since_time.seconds = EPOCH_S
    return wait


def test_watch_as_json(ramify: Ramify, gateway: FakeGateway) -> None:
    add_job(gateway)
    events = records(ramify("watch", "job-1", "--json").out)
    assert [event["state"] for event in events] == ["running", "done"]
    assert events[0]["time"] == "2026-01-01T00:00:01Z"
    assert events[0]["notice"] is None


def test_watch_as_json_passes_notices_on(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway, finished=False)
    gateway.notice(fake, job_pb2.NOTICE_KIND_SET_ASIDE, "problem 2 has crashed 3 engines")
    gateway.finish(fake, [])
    _, event, _ = records(ramify("watch", "job-1", "--json").out)
    assert event["notice"] == {"kind": "set_aside", "text": "problem 2 has crashed 3 engines"}


def test_results(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway, finished=False)
    failed = job_pb2.Result(problem_index=1, outcome=job_pb2.OUTCOME_FAILED, message="no\x1b[31m room")
    fake.results.update({0: solved(0, fake.problems[0]), 1: failed})
    result = ramify("results", "job-1")
    header, first, second, why = result.out.splitlines()
    assert header.split() == ["index", "problem", "outcome", "verdict", "score", "answer", "tokens"]
    assert first.split() == ["0", "4", "5", "6", "10", "answered", "correct", "0.98", "30-6=24:24", "812"]
    assert second.split() == ["1", "failed", "–", "–", "–", "0"]
    assert why == "  no\N{REPLACEMENT CHARACTER}[31m room", "whole, however narrow the terminal is"
    assert result.err == "job job-1 is running: 0 of 3 problems have a result\n"
    record, _ = records(ramify("results", "job-1", "--json").out)
    assert record["problem"] == {"id": "p10", "text": "4 5 6 10", "reference": ""}
    assert (record["outcome"], record["verdict"], record["score"]) == ("answered", "correct", 0.98)
    assert record["steps"] == ["10-4=6:5 6 6", "6*5=30:6 30", "30-6=24:24"]
    assert record["answer_node_id"] == "ffffffffffffffff"


def test_a_result_says_what_is_odd_about_it_and_who_wrote_it(ramify: Ramify, gateway: FakeGateway, tmp_path: Path) -> None:
    fake = add_job(gateway)
    fake.results[1].note = "no step of the answer ended with '\\n'"
    fake.results[1].generators.extend(["a", "b", "a"])
    note = ramify("results", "job-1").out.splitlines()[3]
    assert note == "  no step of the answer ended with '\\n'"
    for name in ("r.csv", "r.parquet"):
        ramify("results", "job-1", "-o", tmp_path / name)
    with (tmp_path / "r.csv").open(newline="") as file:
        assert [(row["note"], row["generators"]) for row in csv.DictReader(file)][:2] == [("", ""), (note.strip(), "a\nb\na")]
    assert pq.read_table(tmp_path / "r.parquet").to_pylist()[1]["generators"] == ["a", "b", "a"]


def test_results_say_what_is_waited_for(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway, finished=False)
    gateway.wait_for(fake, verifier_wait(340))
    told, waits = ramify("results", "job-1").err.splitlines()
    assert told == "job job-1 is running: 0 of 3 problems have a result"
    assert waits.startswith("waits: 340 chains for verifier tiny24-prm: connection refused")


def test_who_watches_is_told_where_failures_are_explained(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway, finished=False)
    gateway.finish(fake, [job_pb2.Result(problem_index=0, outcome=job_pb2.OUTCOME_FAILED, message="no room")])
    watched = ramify("watch", "job-1")
    assert watched.code == 0
    assert "1 failed" in watched.out
    assert watched.err == "`ramify results job-1` says why problems failed\n"
    add_job(gateway)
    assert not ramify("watch", "job-2").err


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_to_watch_a_job_of_which_everything_fails_fails(ramify: Ramify, gateway: FakeGateway, flags: tuple[str, ...]) -> None:
    fake = add_job(gateway, finished=False)
    failed = [job_pb2.Result(problem_index=index, outcome=job_pb2.OUTCOME_FAILED) for index in range(3)]
    gateway.finish(fake, failed)
    assert ramify("watch", "job-1", *flags).code == 1
    assert ramify("results", "job-1").code == 0


def test_a_result_says_that_its_problem_was_restarted(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway)
    fake.results[1].restarted = "segment 7 was damaged"
    _, _, second, note, third = ramify("results", "job-1").out.splitlines()
    assert (second.split()[0], note, third.split()[0]) == ("1", "  restarted: segment 7 was damaged", "2")
    assert [record["restarted"] for record in records(ramify("results", "job-1", "--json").out)] == [
        "",
        "segment 7 was damaged",
        "",
    ]


def test_results_as_files(ramify: Ramify, gateway: FakeGateway, tmp_path: Path) -> None:
    add_job(gateway, count=1_200)
    for name in ("r.jsonl", "r.csv", "r.parquet"):
        result = ramify("results", "job-1", "--output", tmp_path / name)
        assert result == (0, "", f"{tmp_path / name}: 1,200 results\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.jsonl", "r.parquet"]
    lines = records((tmp_path / "r.jsonl").read_text())
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert len(lines) == len(rows) == len(columns) == 1_200
    assert rows[7]["text"] == columns[7]["text"] == "4 5 6 17"
    assert rows[7]["steps"].split("\n") == columns[7]["steps"] == lines[7]["steps"]
    assert float(rows[7]["score"]) == pytest.approx(columns[7]["score"]) == lines[7]["score"]
    # What was written can be submitted again.
    for name in ("r.csv", "r.parquet"):
        assert ramify("submit", tmp_path / name).code == 0


def test_output_that_cannot_be_written(ramify: Ramify, gateway: FakeGateway, tmp_path: Path) -> None:
    add_job(gateway)
    for name, message in {
        "r.xml": "the name must end in .jsonl, .csv, .parquet",
        "no/r.csv": "there is no directory",
    }.items():
        result = ramify("results", "job-1", "-o", tmp_path / name)
        assert result.code == 2
        assert message in result.err
    assert ramify("results", "nope", "-o", tmp_path / "r.csv").code == 2
    assert not list(tmp_path.iterdir())


def test_tree_by_index_and_by_id(ramify: Ramify, gateway: FakeGateway) -> None:
    fake = add_job(gateway)
    fake.trees[1] = beam_tree()
    by_index = ramify("tree", "job-1", "1")
    assert by_index.out.startswith("4 5 6 10 · answered · correct · ")
    assert "\x1b" not in by_index.out
    assert ramify("tree", "job-1", "p11") == by_index
    (record,) = records(ramify("tree", "job-1", "1", "--json").out)
    assert isinstance(record["nodes"], list)
    assert record["nodes"][0]["text"] == "10-4=6:5 6 6\n"
    assert record["nodes"][0]["finish"] == "step"
    missing = ramify("tree", "job-1", "p99")
    assert missing.code == 2
    assert "no result of job job-1 has the problem id 'p99'" in missing.err
    assert ramify("tree", "job-1", "3") == (2, "", "ramify: job job-1 has no problem 3; it has 3\n")


def test_cancel(ramify: Ramify, gateway: FakeGateway) -> None:
    add_job(gateway, finished=False)
    assert ramify("cancel", "job-1").out == "cancelled · solved 0 of 3 · 16 chains each · 0 tokens · 2 s\n"
    assert records(ramify("cancel", "job-1", "--json").out)[0]["state"] == "cancelled"


@pytest.mark.parametrize("command", [["watch", "x"], ["results", "x"], ["tree", "x", "0"], ["cancel", "x"]])
def test_unknown_job(ramify: Ramify, gateway: FakeGateway, command: list[str]) -> None:
    assert ramify(*command) == (2, "", "ramify: there is no job x; `ramify jobs` lists those there are\n")


def test_address_before_or_behind_the_command(ramify: Ramify, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMIFY_ADDRESS", "127.0.0.1:1")
    assert ramify("--address", gateway.address, "jobs").err == "no jobs\n"
    assert ramify("jobs", "--address", gateway.address).err == "no jobs\n"
    lost = ramify("jobs")
    assert lost.code == 1
    assert lost.err == (
        "ramify: no gateway answers at 127.0.0.1:1; start one with `ramify up`, "
        "or say where it is with --address or RAMIFY_ADDRESS\n"
    )


@pytest.mark.parametrize("address", ["here", "here:", "http://here:80", ":x"])
def test_malformed_address(ramify: Ramify, address: str) -> None:
    result = ramify("--address", address, "jobs")
    assert result.code == 2
    assert result.err.startswith("ramify: an address is HOST:PORT")


def test_command_line_that_is_none(ramify: Ramify) -> None:
    assert ramify("nope") == (2, "", "ramify: No such command 'nope'.\nSee `ramify --help`.\n")
    assert ramify("tree", "job").err == "ramify: Missing argument 'PROBLEM'.\nSee `ramify tree --help`.\n"
    assert ramify("--help").code == 0


def test_a_bug_is_no_traceback_unless_asked_for(ramify: Ramify, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("ramify.cli.listings.show_jobs", broken)
    result = ramify("jobs")
    assert result.code == 1
    assert result.err.startswith("ramify: this should not have happened: ZeroDivisionError: oh\n")
    monkeypatch.setenv("RAMIFY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        ramify("jobs")


RAMIFY = [sys.executable, "-c", "from ramify.cli.main import main; main()"]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, ramify.cli.main; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "onnxruntime", "pyarrow", "grpc", "numpy", "pydantic"} & set(modules)


def test_ctrl_c_leaves_the_job_running(gateway: FakeGateway) -> None:
    add_job(gateway, finished=False)
    with subprocess.Popen([*RAMIFY, "watch", "job-1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        gateway.wait_for_watch(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == "job job-1 goes on; see it again with `ramify watch job-1`"
    assert gateway.jobs["job-1"].job.state == job_pb2.JOB_STATE_RUNNING


def test_a_reader_that_leaves_is_no_error(gateway: FakeGateway) -> None:
    add_job(gateway, count=3_000)
    with subprocess.Popen(
        [*RAMIFY, "results", "job-1", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["problem_index"] == 0
        process.stdout.close()
        assert process.stderr.read() == ""
