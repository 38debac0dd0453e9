"""The system as applications of Ray Serve: what the dashboard is told, what HTTP brings, and what a lost replica costs."""

import json
import shlex
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ramify.client import Client, SpecFields
from ramify.v1 import job_pb2
from tests.e2e.conftest import RAMIFY, Up
from tests.waiting import until

KNOBS: SpecFields = {"aggregate": "prod", "threshold": 0.3, "max_steps": 8, "max_step_tokens": 32}
FLAGS = ["--checker", "countdown", *(f"{name}={value}" for name, value in KNOBS.items())]


class Served:
    """A running `ramify up --http`."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.http = f"127.0.0.1:{free.getsockname()[1]}"
        self.home = home
        self.up = Up(home, "--http", self.http, "--dashboard")
        dashboard = next(line.split()[1] for line in self.up.said.splitlines() if line.startswith("  dashboard"))
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        self.dashboard = httpx.Client(base_url=dashboard, headers={"authorization": f"Bearer {token}"}, timeout=60)

    def applications(self) -> dict[str, Any]:
        """As the dashboard's Serve tab shows them."""
        found: dict[str, Any] = self.dashboard.get("/api/serve/applications/").json()["applications"]
        return found

    def healthy(self) -> bool:
        """Whether all are."""
        found = self.applications()
        deployments = [each for app in found.values() for each in app["deployments"].values()]
        return {app["status"] for app in found.values()} == {"RUNNING"} and {each["status"] for each in deployments} == {
            "HEALTHY"
        }

    def actors(self, prefix: str) -> dict[str, Any]:
        """Those that live, by name."""
        found = self.dashboard.get("/logical/actors").json()["data"]["actors"].values()
        return {actor["name"]: actor for actor in found if actor["name"].startswith(prefix) and actor["state"] == "ALIVE"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    system = Served(tmp_path_factory.mktemp("home"))
    with system.dashboard:
        yield system
    code, left = system.up.stop()
    assert (code, left) == (0, []), system.up.said


def test_a_submission_is_a_job_of_ray(served: Served, puzzles: list[str]) -> None:
    """What `ray job submit` does, without another start of Ray's."""
    file = served.home / "puzzles.jsonl"
    file.write_text("".join(json.dumps({"puzzle": puzzle}) + "\n" for puzzle in puzzles[:5]))
    command = shlex.join([*RAMIFY, "submit", str(file), *FLAGS, "--address", served.up.address, "--watch"])
    accepted = served.dashboard.post("/api/jobs/", json={"entrypoint": command})
    if "No available agent" in accepted.text:
        pytest.skip("another Ray on this machine has the port of Ray's agent, 52365, without which it takes no jobs")
    path = f"/api/jobs/{accepted.json()['submission_id']}"

    def finished() -> str:
        status = served.dashboard.get(path).json()["status"]
        return status if status in ("SUCCEEDED", "FAILED", "STOPPED") else ""

    assert until(finished) == "SUCCEEDED", served.dashboard.get(f"{path}/logs").text


def test_the_system_runs_on_serve(served: Served, puzzles: list[str]) -> None:
    assert served.healthy(), served.applications()
    ours = served.actors("ramify:")
    assert sorted(ours) == ["ramify:engine:local:0", "ramify:shard:0", "ramify:supervisor"]

    asked = {"messages": [{"role": "user", "content": "4 5 6 10"}], "checker": "countdown", "search": KNOBS}
    answer = httpx.post(f"http://{served.http}/v1/chat/completions", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["ramify"]["verdict"] == "correct"
    page = httpx.get(f"http://{served.http}{choice['ramify']['tree']}", timeout=60)
    assert "4 5 6 10" in page.text

    with Client(served.up.address) as client:
        fields: SpecFields = {**KNOBS, "checker": "countdown"}
        job = client.submit(puzzles[:60], **fields)
        (replica,) = served.actors("SERVE_REPLICA::system#").values()
        psutil.Process(int(replica["pid"])).kill()
        *_, last = client.watch(job.job_id)
        assert (last.state, last.progress.takeovers) == (job_pb2.JOB_STATE_DONE, 0)
    until(lambda: served.healthy() and replica["name"] not in served.actors("SERVE_REPLICA::system#"))
    assert {name: actor["pid"] for name, actor in served.actors("ramify:").items()} == {
        name: actor["pid"] for name, actor in ours.items()
    }, "the replica that is new has found what was there"

    assert served.dashboard.delete("/api/serve/applications/").status_code == 200
    until(lambda: not served.actors("ramify:"))
    with sqlite3.connect(served.home / "state.db") as store:
        assert store.execute("select count(*) from shards").fetchone() == (0,), "the shard has left"
        assert store.execute("select count(*) from slots where owner != ''").fetchone() == (0,), "and handed over its slots"
