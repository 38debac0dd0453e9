"""The images: what their Dockerfile may not do, and that all that they install is pinned. `make check-images` runs its steps."""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "infra" / "docker"
IMAGES = ("cpu", "vllm")
# What nodes and processes of both images exchange, pickled or on a wire.
SHARED = ("grpcio", "protobuf", "pyarrow", "ray", "sqlalchemy", "psycopg", "alembic")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """What `make check-images` runs, as a module."""
    spec = importlib.util.spec_from_file_location("check_images", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for theirs
    spec.loader.exec_module(module)
    return module


def pins(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint (pip install -e '.[dev]')")
    command = [hadolint, "--format", "json", "--config", str(FOLDER / "hadolint.yaml"), str(FOLDER / "Dockerfile")]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (json.loads(told.stdout), told.returncode) == ([], 0)


def test_both_images_run_as_nobody_who_may_write_their_root(check: ModuleType) -> None:
    for image in IMAGES:
        steps = check.line_of(image)
        last = {step.name: step.value for step in steps}
        assert last["USER"] == "10001:10001"
        assert last["ENTRYPOINT"].startswith("["), "a shell between would keep signals to itself"
        variables = " ".join(step.value for step in steps if step.name == "ENV").split()
        assert {"HOME=/tmp", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"} <= {*variables}
        tools = [
            step.value for step in steps if step.name == "RUN" and re.search(r"(^|\s)(gcc|g\+\+|make|pip)(\s|$)", step.value)
        ]
        assert bool(tools) == (image == "vllm"), "only what compiles kernels has a compiler"


def test_what_is_checked_is_what_is_built(check: ModuleType) -> None:
    """`check.py` does every step of the stages that build, and the images take over nothing else."""
    done = check.line_of(check.TARGET)
    assert [step for name in ("build", "build-cpu") for step in check.stages()[name][1:]] == done
    assert {step.name for step in done} <= {"ARG", "ENV", "WORKDIR", "COPY", "RUN"}
    for image in IMAGES:
        (copied,) = [step.value for step in check.stages()[image] if step.name == "COPY"]
        assert copied == f"--from=build-{image} /opt/ramify /opt/ramify"


def test_what_is_copied_is_there_and_not_ignored(check: ModuleType) -> None:
    admitted = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for step in check.stages()["build"]:
        if step.name == "COPY":
            for source in step.value.split()[:-1]:
                assert source in admitted
                assert (ROOT / source).exists()


def test_the_version_is_the_releases() -> None:
    release = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert release is not None
    text = (FOLDER / "Dockerfile").read_text()
    assert set(re.findall(r'image\.version="(.*)"', text)) == {release[1]}
    assert set(re.findall(r"ramify/\w+:([\d.]+)", text)) == {release[1]}


def test_all_that_the_image_for_cpus_installs_is_pinned() -> None:
    """With all that this needs in turn, as far as it is installed here: an extra's packages need not be."""
    pinned = pins(ROOT / "infra" / "constraints.txt")
    asked, missing, seen = [Requirement("ramify[postgres,otel]")], set(), set()
    while asked:
        requirement = asked.pop()
        for extra in requirement.extras or {""}:
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name != "ramify" and name not in pinned:
                missing.add(name)
            try:
                needs = importlib.metadata.requires(requirement.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            found = [Requirement(need) for need in needs]
            asked += [need for need in found if need.marker is None or need.marker.evaluate({"extra": extra})]
    assert not missing


def test_both_images_agree_in_what_they_exchange() -> None:
    cpu, vllm = pins(ROOT / "infra" / "constraints.txt"), pins(FOLDER / "constraints-vllm.txt")
    assert {name: vllm[name] for name in SHARED} == {name: cpu[name] for name in SHARED}
    assert vllm["torch"] == cpu["torch"]
