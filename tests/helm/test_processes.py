"""What the chart starts, starts: its commands with its own configuration, certificates and all, as processes of this machine."""

import contextlib
import importlib
import inspect
import json
import subprocess
import sys
import typing
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
import yaml

from ramify.client import Client, PermissionDenied
from ramify.serving.config import read_system
from ramify.tls import ClientTls
from ramify.v1 import verifier_service_pb2, verifier_service_pb2_grpc
from tests.helm.chart import PRESETS, Pods, of, pods, render
from tests.helm.processes import STOP_S, Place, wait_until_serving

HEALTH = {"gateway": "8701", "verifier": "50062"}
AUTHORITY = "here-ramify-shards-tls"  # of the certificates that helm makes
SETTINGS = ("small", "postgresql.enabled=false", "store.existingSecret=store", f"gateway.clientCa.existingSecret={AUTHORITY}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("pods")
    return Place(folder, render(*SETTINGS), {"store": {"url": f"sqlite+aiosqlite:///{folder / 'state.db'}"}})


@pytest.fixture(scope="module")
def kinds() -> dict[str, Pods]:
    """Pods by what they are."""
    return {each.labels["app.kubernetes.io/component"]: each for each in pods(render(*SETTINGS))}


@pytest.fixture(scope="module")
def running(place: Place, kinds: dict[str, Pods]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The migration has run, and gateway and verifier serve."""
    migrate = place.start(kinds["migrate"])
    said, _ = migrate.communicate(timeout=120)
    assert migrate.returncode == 0, said
    with contextlib.ExitStack() as ends:
        found = {name: ends.enter_context(place.start(kinds[name])) for name in ("gateway", "verifier")}
        try:
            for name, process in found.items():
                wait_until_serving(process, place.port(name, HEALTH[name]))
            yield found
        finally:
            for process in found.values():
                process.terminate()


def test_the_gateway_lets_in_who_has_a_key(place: Place, kinds: dict[str, Pods], running: object) -> None:
    """`helm test` makes a key, which is good until it ends."""
    makes_key, mark, _ = kinds["test"].container["args"][0].partition("printf")
    assert mark
    done = place.bash(kinds["test"], makes_key + 'ramify jobs; printf "%s" "$RAMIFY_API_KEY" > key')
    assert done.returncode == 0, done.stderr
    etc = place.files(kinds["test"])
    tls = ClientTls(etc / "gateway-tls/ca.crt", etc / "client-tls/tls.crt", etc / "client-tls/tls.key")
    used = (etc / "key").read_text()
    for key in (used, None):
        with (
            Client(f"127.0.0.1:{place.port('gateway', '8700')}", api_key=key, tls=tls) as client,
            pytest.raises(PermissionDenied),
        ):
            next(iter(client.jobs()))
    assert "revoked" in place.bash(kinds["gateway"], "ramify keys list --store-file /etc/ramify/store/url").stdout


async def test_shards_find_the_verifier_and_prove_who_they_are(place: Place, kinds: dict[str, Pods], running: object) -> None:
    etc = place.files(kinds["scheduler"])
    async with read_system(etc / "system.toml").config.verifier() as verifier:
        assert {"tiny24-prm", "countdown"} <= {*(await verifier.get_model()).models}
    # Its certificate is of the name by which the shards know it; and who shows none is not let in.
    files = [etc / "verifier-tls" / name for name in ("ca.crt", "tls.key", "tls.crt")]
    known = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
    unknown = grpc.ssl_channel_credentials(files[0].read_bytes())
    options = [("grpc.ssl_target_name_override", "here-ramify-verifier-headless")]
    for credentials, lets_in in ((known, True), (unknown, False)):
        with grpc.secure_channel(f"127.0.0.1:{place.port('verifier', '50061')}", credentials, options) as channel:
            stub = verifier_service_pb2_grpc.VerifierServiceStub(channel)
            ask = contextlib.nullcontext() if lets_in else pytest.raises(grpc.RpcError)
            with ask:
                stub.GetModel(verifier_service_pb2.GetModelRequest(), timeout=30)


def test_prometheus_is_told(place: Place, running: object) -> None:
    for name in ("gateway", "verifier"):
        with urllib.request.urlopen(f"http://127.0.0.1:{place.port(name, '9464')}/metrics", timeout=30) as answer:
            assert f"ramify_{name}_" in answer.read().decode()


def test_they_end_when_they_are_told_to(running: dict[str, subprocess.Popen[str]]) -> None:
    for name, process in running.items():  # the last test of the module: who comes later finds nobody
        process.terminate()
        said, _ = process.communicate(timeout=STOP_S)
        assert process.returncode == 0, f"{name}: {said}"
        levels = [json.loads(line)["level"] for line in said.splitlines() if line.startswith("{")]
        assert levels, said
        assert "ERROR" not in levels, said


@pytest.mark.parametrize("preset", PRESETS)
def test_ray_reads_what_it_is_given(preset: str, tmp_path: Path) -> None:
    objects = render(preset, *SETTINGS[1:] if preset == "small" else ())
    scheduler = next(each for each in pods(objects) if each.owner.endswith("/schedulers"))
    etc = Place(tmp_path, objects, Kept()).files(scheduler)
    config = read_system(etc / "system.toml").config
    fleet = config.fleet
    groups = of(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    nodes = [{**group.get("labels", {})} for group in groups]
    assert any(config.labels.items() <= labels.items() for labels in nodes), "no node is for the shards"
    room = [int(group["rayStartParams"].get("num-cpus", 0)) for group in groups if group["groupName"] == "schedulers"]
    assert config.shard_cpus * config.shards <= room[0] * groups[0]["replicas"] < config.shards + groups[0]["replicas"]
    for engine in fleet.engines:
        wanted = {**engine.labels, **({fleet.region_label: engine.region} if engine.region else {})}
        assert [group["groupName"] for group, labels in zip(groups, nodes, strict=True) if wanted.items() <= labels.items()] == [
            engine.name.rpartition(":")[0]
        ]
    for engines in fleet.groups:
        (group,) = (each for each in groups if each["groupName"] == engines.name)
        bounds = (group["minReplicas"], group["replicas"], group["maxReplicas"])
        assert bounds == (engines.bounds.count_min, engines.count, engines.bounds.count_max)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert engines.engine.gpus == limits.get("nvidia.com/gpu", 0)
        assert engines.engine.gpus or engines.engine.cpus == float(limits["cpu"]), "two engines would share a pod"
        if engines.engine.region:
            assert group["template"]["spec"]["nodeSelector"]["topology.kubernetes.io/region"] == engines.engine.region


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own
@pytest.mark.parametrize("preset", PRESETS)
def test_serve_takes_its_applications(preset: str) -> None:
    from ray.scripts.scripts import start as ray_start
    from ray.serve.schema import ServeDeploySchema

    spec = of(render(preset), "RayService")["spec"]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    schedulers = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    assert [each.name for each in schema.applications] == ["system", "http"]
    for each in schema.applications:
        module, _, name = each.import_path.partition(":")
        build = getattr(importlib.import_module(module), name)
        takes = typing.get_type_hints(build)["args"]
        assert takes.model_validate(each.args)
        (deployment,) = each.deployments
        wanted = (deployment.ray_actor_options.label_selector or {}).items()
        assert wanted
        assert wanted <= schedulers["labels"].items(), "it would be where its files are not"
        assert deployment.name == build(takes.model_validate(each.args))._bound_deployment.name
        assert [*inspect.signature(build).parameters] == ["args"]
    known = {option.lstrip("-") for parameter in ray_start.params for option in parameter.opts}
    cluster = spec["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {*group["rayStartParams"]} <= known


def test_what_runs_before_a_node_ends_is_there() -> None:
    hook = next(each for each in pods(render("small")) if each.owner.endswith("/schedulers")).container["lifecycle"]["preStop"]
    _, _, module, *arguments = hook["exec"]["command"]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


class Kept(dict[str, Mapping[str, str]]):
    """Secrets of an operator, whatever they are called."""

    def __missing__(self, name: str) -> dict[str, str]:
        url = "sqlite+aiosqlite://"
        return {"url": url, "tls.crt": "-----BEGIN -----", "tls.key": "-----BEGIN -----", "ca.crt": "-----BEGIN -----"}
