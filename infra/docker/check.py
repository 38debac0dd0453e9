"""`python infra/docker/check.py`: does what the image for CPUs does, without a container engine, and uses what comes of it.

The steps are read from the Dockerfile: what its build stages COPY and RUN is copied and run, in an empty folder, with this
Python in the base image's place. Then the commands that the chart starts are run from there, with an environment and a home that
hold nothing else. Not run are the steps of the last stage, which need Debian's package manager and an image's root.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
TARGET = "build-cpu"
START_S = 120.0
# Which indexes there are, and by what way they are reached, is the machine's affair.
INHERITED = re.compile(
    r"PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|TRUSTED_HOST|CONFIG_FILE|CERT)|.*_proxy|.*_PROXY|SSL_CERT_FILE"
)


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction of a Dockerfile, without its continuation lines."""

    name: str  # e.g. RUN
    value: str


def stages(dockerfile: Path = DOCKERFILE) -> dict[str, list[Step]]:
    """The steps of each stage by its name, the first one its FROM."""
    found: dict[str, list[Step]] = {}
    with tempfile.TemporaryDirectory() as folder:  # the parser may write beside what it reads
        copy = shutil.copy(dockerfile, Path(folder) / "Dockerfile")
        for each in DockerfileParser(str(copy)).structure:
            step = Step(each["instruction"], each["value"])
            if step.name == "FROM":
                found[step.value.split()[-1]] = []
            if found and step.name != "COMMENT":
                found[[*found][-1]].append(step)
    return found


def line_of(target: str) -> list[Step]:
    """All steps that make a stage, those of the stages that it is made FROM first."""
    known = stages()
    first, *steps = known[target]
    base = first.value.split()[0]
    return [*(line_of(base) if base in known else []), *steps]


@dataclass(slots=True)
class Build:
    """A folder in which steps are done; it stands for the image's root."""

    root: Path
    workdir: Path = Path("/")
    environment: dict[str, str] = field(default_factory=dict)

    def do(self, step: Step) -> None:
        """Do one step. Raises `CalledProcessError`, and `NotImplementedError` for one that stages that build don't have."""
        match step.name:
            case "WORKDIR":
                self.workdir = self.inside(step.value)
                self.workdir.mkdir(parents=True, exist_ok=True)
            case "ARG" | "ENV":
                named = dict(each.split("=", 1) for each in shlex.split(step.value))
                self.environment |= {name: str(self.inside(value)) for name, value in named.items()}
            case "COPY":
                *sources, to = step.value.split()
                for source in sources:
                    self.copy(source, self.workdir / to)
            case "RUN":
                print(f"RUN {step.value}", flush=True)
                subprocess.run(["bash", "-euo", "pipefail", "-c", step.value], cwd=self.workdir, env=self.environment, check=True)
            case _:
                raise NotImplementedError(f"{step.name} is no step of a stage that builds")

    def copy(self, source: str, to: Path) -> None:
        """Copy what git knows of a path; what it doesn't know belongs in no image."""
        listed = subprocess.run(["git", "ls-files", "-z", "--", source], cwd=ROOT, capture_output=True, text=True, check=True)
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
        assert files, f"COPY {source}: git knows of no such file"
        for file in files:
            inner = file.relative_to(ROOT / source)
            target = to / inner if inner.parts else to / file.name if to.is_dir() else to
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)

    def inside(self, value: str) -> Path | str:
        """A path of the image as one of this machine; anything else as it is."""
        return self.root / value.removeprefix("/") if value.startswith("/") else value


def build(root: Path) -> Build:
    """Do the steps of the image for CPUs."""
    subprocess.run([sys.executable, "-m", "venv", root / "base"], check=True)  # the base image's Python
    inherited = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
    home = root / "home"
    home.mkdir()
    made = Build(root, root, {**inherited, "PATH": f"{root}/base/bin:/usr/bin:/bin", "HOME": str(home)})
    for step in line_of(TARGET):
        made.do(step)
    return made


def wheel_of(made: Build) -> str:
    """What the wheel is, as a digest."""
    (wheel,) = made.workdir.glob("dist/*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@contextlib.contextmanager
def gateway(ramify: Path, store: Path, home: Path, environment: dict[str, str]) -> Iterator[str]:
    """A gateway, started as the chart starts it; its address."""
    ready = home / "ready.json"
    flags = ["--store-file", store, "--listen", "127.0.0.1:0", "--no-migrate", "--ready-file", ready]
    with subprocess.Popen([ramify / "python", "-m", "ramify.gateway", *flags], cwd=home, env=environment) as process:
        try:
            deadline_s = time.monotonic() + START_S
            while not ready.exists():
                assert process.poll() is None, "the gateway has ended"
                assert time.monotonic() < deadline_s, "the gateway does not start"
                time.sleep(0.1)
            yield str(json.loads(ready.read_text())["address"])
        finally:
            process.terminate()
    assert process.returncode == 0, "the gateway did not stop in order"


def ray_node(home: Path, environment: dict[str, str]) -> None:
    """Start Ray's head as KubeRay does, with token authentication, and ask it what KubeRay's probes ask."""
    port, dashboard, agent, metrics = free_ports(4)
    flags = f"--port={port} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --metrics-export-port={metrics}"
    folder = tempfile.mkdtemp(prefix="ray-")  # has a short path: Ray's sockets lie in it
    command = f"ulimit -n 65536; ray start --head --block --num-cpus=0 --dashboard-host=0.0.0.0 {flags} --temp-dir={folder}"
    probe = " && ".join(
        f"wget --tries 1 -T 2 -q -O- http://localhost:{at} | grep success"
        for at in (f"{agent}/api/local_raylet_healthz", f"{dashboard}/api/gcs_healthz", f"{agent}/api/healthz")
    )
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder}
    print("$", command, flush=True)
    with subprocess.Popen(["bash", "-c", "--", command], cwd=home, env=environment | token, start_new_session=True) as process:
        try:
            deadline_s = time.monotonic() + START_S
            while subprocess.run(["bash", "-c", probe], stdout=subprocess.DEVNULL, check=False).returncode:
                assert process.poll() is None, "Ray's head has ended"
                assert time.monotonic() < deadline_s, "Ray's head does not become well"
                time.sleep(1)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Some that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def use(made: Build) -> None:
    """Run what the chart runs from the environment that was made, which must not change by that."""
    home = made.root / "tmp"  # the one place to which a container writes
    home.mkdir()
    ramify = made.root / "opt" / "ramify" / "bin"
    environment = {"PATH": f"{ramify}:/usr/bin:/bin", "HOME": str(home), "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    store = home / "store-url"
    store.write_text(f"sqlite+aiosqlite:///{home}/state.db")

    def run(*command: str) -> None:
        print("$", *command, flush=True)
        subprocess.run([ramify / command[0], *command[1:]], cwd=home, env=environment, check=True)

    before = {path: path.stat().st_mtime_ns for path in ramify.parent.rglob("*")}
    run("ray", "--version")
    run("ramify", "migrate", "--store-file", str(store))
    with gateway(ramify, store, home, environment) as address:
        run("ramify", "jobs", "--address", address)
    ray_node(home, environment)
    run("ramify", "demo", "--puzzles", "4")
    assert {path: path.stat().st_mtime_ns for path in ramify.parent.rglob("*")} == before, "what is installed was written to"


def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="ramify-image-") as folder:
        made = build(Path(folder))
        first = wheel_of(made)
        shutil.rmtree(made.workdir / "dist")
        made.do(next(step for step in line_of(TARGET) if step.name == "RUN" and "pip wheel" in step.value))
        assert wheel_of(made) == first, "the same sources make another wheel"
        print(f"the wheel is {first} each time")
        use(made)
    print("the image's steps work, and what they make works")


if __name__ == "__main__":
    main()
