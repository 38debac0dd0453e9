"""All that the chart starts for a trial, as processes: gateway, verifier, and Ray's nodes as KubeRay starts them."""

import contextlib
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.helm.chart import Pods, of, pods, render
from tests.helm.processes import STOP_S, Place, wait_until_serving
from tests.waiting import until

pytestmark = pytest.mark.faults  # two minutes of a busy machine; its parts are tested one by one in tests/helm

SETTINGS = ("small", "postgresql.enabled=false", "store.existingSecret=store")
KNOBS = {"aggregate": "prod", "threshold": 0.3, "max_steps": 8, "max_step_tokens": 32}


class Cluster:
    """The Ray cluster that a RayService describes.

    Args:
        place: of files and ports.
        service: the RayService.
        templates: its pods, by the names of their groups.
        folder: for Ray's own files; its path must be short.
    """

    def __init__(self, place: Place, service: Mapping[str, Any], templates: Mapping[str, Pods], folder: str) -> None:
        self._place, self._templates, self._folder = place, templates, folder
        token = secrets.token_hex(16)
        self._auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_CLUSTER_NAME": "here-ramify-abcde"}
        self.dashboard = httpx.Client(
            base_url=f"http://127.0.0.1:{place.port('head', '8265')}", headers={"authorization": f"Bearer {token}"}, timeout=60
        )
        cluster = service["rayClusterConfig"]
        own = {"head": True, "port": place.port("head", "6379"), "dashboard-port": place.port("head", "8265"), "temp-dir": folder}
        self._nodes = [self._start("head", {**cluster["headGroupSpec"]["rayStartParams"], **own})]
        until(partial(self._started, "head"), timeout_s=120)
        until(self._answers, timeout_s=120)
        for group in cluster["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            labels = ",".join(f"{key}={value}" for key, value in group["labels"].items())
            own = {"address": f"127.0.0.1:{place.port('head', '6379')}", "labels": labels}
            self._nodes.append(self._start(group["groupName"], {"num-cpus": limits["cpu"], **group["rayStartParams"], **own}))
            until(partial(self._started, group["groupName"]), timeout_s=120)

    def _start(self, group: str, given: Mapping[str, object]) -> subprocess.Popen[bytes]:
        """What KubeRay makes of rayStartParams, with ports of this machine."""
        ports = {name: self._place.port(group, name) for name in ("metrics-export-port", "dashboard-agent-listen-port")}
        if "head" in given:
            ports["ray-client-server-port"] = self._place.port(group, "ray-client-server-port")
        options = {"block": True, "object-store-memory": 80 << 20, **given, **ports}
        flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        with (Path(self._folder) / f"{group}.log").open("wb") as log:
            return subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), "start", *flags],
                env={**self._place.environment(self._templates[group]), **self._auth},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _started(self, group: str) -> bool:
        said = (Path(self._folder) / f"{group}.log").read_text()
        assert self._nodes[-1].poll() is None, said
        return "Ray runtime started" in said

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.dashboard.get("/api/version").status_code == 200
        return False

    def applications(self) -> dict[str, Any]:
        """As Serve tells of them."""
        found: dict[str, Any] = self.dashboard.get("/api/serve/applications/").json()["applications"]
        return found

    def actors(self, prefix: str) -> dict[str, str]:
        """Labels of the nodes of those that live, by name."""
        found = self.dashboard.get("/logical/actors").json()["data"]["actors"].values()
        return {
            actor["name"]: actor["address"]["nodeId"]
            for actor in found
            if actor["name"].startswith(prefix) and actor["state"] == "ALIVE"
        }

    def stop(self) -> None:
        """End all of it."""
        self.dashboard.close()
        started = [
            each
            for node in self._nodes
            for each in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        ]
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(started, timeout=STOP_S)
        for process in left:
            process.kill()
        for node in self._nodes:
            node.wait()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Gateway and verifier serve."""
    found = Place(tmp_path, render(*SETTINGS), {"store": {"url": f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"}})
    kinds = {each.labels["app.kubernetes.io/component"]: each for each in pods(render(*SETTINGS))}
    with found.start(kinds["migrate"]) as migrate:
        assert "migrated" in migrate.communicate(timeout=120)[0]
    with contextlib.ExitStack() as ends:
        for name, health in (("gateway", "8701"), ("verifier", "50062")):
            process = ends.enter_context(found.start(kinds[name]))
            ends.callback(process.terminate)
            wait_until_serving(process, found.port(name, health))
        yield found


@pytest.fixture
def cluster(place: Place) -> Iterator[Cluster]:
    """Ray's nodes are there, and Serve has been told of the applications."""
    objects = render(*SETTINGS)
    service = of(objects, "RayService")["spec"]
    templates = {each.owner.rpartition("/")[2]: each for each in pods(objects) if each.owner.startswith("RayService")}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        found = Cluster(place, service, templates, folder)
        try:
            wanted = place.here(
                service["serveConfigV2"].replace("port: 8000", f"port: {place.port('head', '8000')}"), templates["schedulers"]
            )
            told = found.dashboard.put("/api/serve/applications/", json=yaml.safe_load(wanted))
            assert told.status_code == 200, told.text
            yield found
        finally:
            found.stop()


def test_the_trial_solves_its_puzzle(place: Place, cluster: Cluster) -> None:
    def runs() -> bool:
        found = cluster.applications()
        assert not [app for app in found.values() if app["status"] == "DEPLOY_FAILED"], found
        return {name: app["status"] for name, app in found.items()} == {"system": "RUNNING", "http": "RUNNING"}

    until(runs, timeout_s=300)
    ours = cluster.actors("ramify:")
    assert {*ours} == {"ramify:engine:tiny24:0", "ramify:shard:0", "ramify:supervisor"}
    replicas = [*cluster.actors("SERVE_REPLICA::").values()]
    home = ours["ramify:shard:0"]
    assert [ours["ramify:supervisor"], *replicas] == [home] * 3, "the nodes of the shards alone have what these read"
    assert ours["ramify:engine:tiny24:0"] != home

    test = next(each for each in pods(render(*SETTINGS)) if each.labels["app.kubernetes.io/component"] == "test")
    script, *arguments = test.container["args"]
    done = place.bash(test, script, *arguments)
    assert done.returncode == 0, done.stderr
    assert "4 5 6 10" in done.stdout

    asked = {"messages": [{"role": "user", "content": "4 5 6 10"}], "checker": "countdown", "search": KNOBS}
    make = "ramify keys create --store-file /etc/ramify/store/url --tenant default --role submit --name http"
    key = place.bash(test, make).stdout.strip()
    url = f"http://127.0.0.1:{place.port('head', '8000')}/v1/chat/completions"
    assert httpx.post(url, json=asked, timeout=60).status_code == 401
    answer = httpx.post(url, json=asked, timeout=120, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["ramify"]["verdict"] == "correct"
