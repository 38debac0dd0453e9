"""The pods of a chart as processes of this machine: their commands and files, with ports and folders that are free here."""

import base64
import os
import re
import socket
import subprocess
import sys
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helm.chart import RELEASE, ROOT, Object, Pods
from tests.waiting import until

IN_THE_IMAGE = "/opt/ramify/lib/python3.11/site-packages/ramify/models/tiny24"
RAMIFY = [sys.executable, "-c", "from ramify.cli.main import main; main()"]
STOP_S = 60
FULLNAME = f"{RELEASE}-ramify"


class Place:
    """What stands for the image, the volumes and the ports of pods.

    Args:
        folder: an empty one.
        objects: of the chart; their Secrets and ConfigMaps are read.
        secrets: of Secrets that the chart leaves to the operator.
    """

    def __init__(self, folder: Path, objects: tuple[Object, ...], secrets: MutableMapping[str, Mapping[str, str]]) -> None:
        self._folder, self._ports = folder, dict[tuple[str, str], int]()
        made: dict[str, Mapping[str, str]] = {}
        for each in objects:
            if each["kind"] in ("Secret", "ConfigMap"):
                data = {} if each["kind"] == "ConfigMap" else {key: decoded(value) for key, value in each.get("data", {}).items()}
                made[each["metadata"]["name"]] = {**data, **each.get("stringData", {})} or each["data"]
        self._kept = ChainMap(made, secrets)

    def files(self, pods: Pods) -> Path:
        """Lay out a pod's projected volumes; the folder that stands for /etc/ramify."""
        etc = self._folder / pods.owner.replace("/", "-")
        if etc.exists():
            return etc
        etc.mkdir(parents=True)
        for volume in pods.spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                (kind,) = source
                kept = self._kept[source[kind]["name"]]
                for item in source[kind].get("items", [{"key": key, "path": key} for key in kept]):
                    path = etc / item["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(self._here(kept[item["key"]], etc, pods))
        return etc

    def port(self, component: str, port: str) -> int:
        """The one here that stands for one of a pod."""
        if (component, port) not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self._ports[component, port] = server.getsockname()[1]
        return self._ports[component, port]

    def _here(self, text: str, etc: Path, pods: Pods) -> str:
        """A text of the chart, with folders and ports of this machine."""
        component = pods.labels["app.kubernetes.io/component"]
        gateway, verifier = (f"127.0.0.1:{self.port(*door)}" for door in (("gateway", "8700"), ("verifier", "50061")))
        names = {
            "/etc/ramify": str(etc),
            IN_THE_IMAGE: str(ROOT / "infra" / "models" / "tiny24"),
            f"{FULLNAME}-gateway:8700": gateway,
            f"{FULLNAME}-verifier-headless:50061": verifier,
        }
        text = re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)
        return re.sub(r"\b0\.0\.0\.0:(\d+)", lambda found: f"127.0.0.1:{self.port(component, found[1])}", text)

    def bash(self, pods: Pods, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a pod's container would, to its end."""
        etc = self.files(pods)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(script.replace("/tmp/", "./"), etc, pods), *arguments],
            env={**self.environment(pods), **environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=etc,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def environment(self, pods: Pods) -> dict[str, str]:
        """The variables of a pod's container."""
        given = pods.container.get("env", ())
        return {
            **os.environ,
            "COLUMNS": "400",
            **{each["name"]: self.here(each["value"], pods) for each in given if "value" in each},
        }

    def here(self, text: str, pods: Pods) -> str:
        """A text of a pod, with folders and ports of this machine."""
        return self._here(text, self.files(pods), pods)

    def start(self, pods: Pods) -> subprocess.Popen[str]:
        """Start what a pod's container runs."""
        etc = self.files(pods)
        container = pods.container
        command = [self._here(each, etc, pods) for each in (*container["command"], *container.get("args", ()))]
        assert command[:2] == ["tini", "--"]
        start = {"python": [sys.executable], "ramify": RAMIFY}[command[2]]
        return subprocess.Popen(
            [*start, *command[3:]],
            env=self.environment(pods),
            cwd=etc,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def decoded(value: str) -> str:
    return base64.b64decode(value).decode()


def serving(process: subprocess.Popen[str], port: int) -> bool:
    """Whether a kubelet's probe would pass; fails if the process has ended."""
    assert process.poll() is None, process.communicate()[0]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def wait_until_serving(process: subprocess.Popen[str], port: int) -> None:
    """Wait as long as it takes."""
    until(lambda: serving(process, port), timeout_s=120)
