"""What keeps an installation at work while its pods come and go."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, ROOT, Pods, of, pods, render, selects
from tests.helm.test_objects import MATRIX

ALL = [pytest.param(settings, id=name) for name, settings in MATRIX.items()]
ENDS = ("Job", "Pod")  # what does its work and ends


def serves(found: Pods) -> bool:
    return found.owner.partition("/")[0] not in ENDS


@pytest.mark.parametrize("settings", ALL)
def test_every_container_says_what_it_needs(settings: tuple[str, ...]) -> None:
    for found in pods(render(*settings)):
        resources = found.container["resources"]
        assert {"cpu", "memory"} <= {*resources["requests"]}, found.owner
        assert "memory" in resources["limits"], found.owner
        for volume in found.spec["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], f"{found.owner}: {volume['name']} is unbounded"


@pytest.mark.parametrize("settings", ALL)
def test_every_server_is_probed(settings: tuple[str, ...]) -> None:
    for found in filter(serves, pods(render(*settings))):
        component = found.labels["app.kubernetes.io/component"]
        ports = {port["name"]: port["containerPort"] for port in found.container["ports"]}
        if component in ("gateway", "verifier"):  # native probes, on a port without TLS
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert found.container[probe]["grpc"] == {"port": ports["health"]}, found.owner
            assert f"--health=0.0.0.0:{ports['health']}" in found.container["args"]
            assert f"--listen=0.0.0.0:{ports['grpc']}" in found.container["args"]
            assert f"--metrics=0.0.0.0:{ports['metrics']}" in found.container["args"]
        elif component in ("scheduler", "engine"):  # KubeRay adds the one for life
            assert found.container["readinessProbe"]["httpGet"]["port"] == 52365, found.owner
        elif component == "postgresql":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= {*found.container}
        else:
            assert component == "ray-head", found.owner


def test_loading_a_model_may_take_its_time() -> None:
    probe = of(render("multi-region"), "Deployment", "-prm")["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 3600


@pytest.mark.parametrize("settings", ALL)
def test_a_pod_has_the_time_to_drain(settings: tuple[str, ...]) -> None:
    for found in filter(serves, pods(render(*settings))):
        if found.labels["app.kubernetes.io/component"] == "postgresql":
            continue
        hook = found.container["lifecycle"]["preStop"]
        arguments = [*found.container.get("args", ()), *hook.get("exec", {}).get("command", ())]
        drains = sum(float(each.partition("=")[2]) for each in arguments if each.startswith(("--drain-s=", "--within-s=")))
        before = hook.get("sleep", {}).get("seconds", 0)
        assert found.spec["terminationGracePeriodSeconds"] >= before + drains + 5, found.owner
        assert before or drains, found.owner


def test_the_head_stays_until_the_shards_have_drained() -> None:
    head, schedulers, *_ = (each for each in pods(render("multi-region")) if each.owner.startswith("RayService"))
    drains = schedulers.container["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert head.container["lifecycle"]["preStop"]["sleep"]["seconds"] > float(drains.removeprefix("--within-s="))


@pytest.mark.parametrize("settings", ALL)
def test_selectors_select_what_they_mean(settings: tuple[str, ...]) -> None:
    objects = render(*settings)
    every = [*pods(objects)]
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        match each["kind"]:
            case "Service":
                found = [one for one in every if selects(each["spec"]["selector"], one.labels)]
                assert len(found) >= 1, name
                for port in each["spec"]["ports"]:
                    for one in found:
                        assert port["targetPort"] in {known["name"] for known in one.container["ports"]}, f"{name} {one.owner}"
            case "Deployment" | "StatefulSet":
                found = [one for one in every if selects(each["spec"]["selector"], one.labels)]
                assert [one.owner for one in found] == [name]
            case "PodDisruptionBudget":
                found = [one for one in every if selects(each["spec"]["selector"], one.labels)]
                assert len(found) == 1, name
                assert isinstance(each["spec"]["minAvailable"], int), "Ray's pods have no scale to take a part of"
                assert 1 <= each["spec"]["minAvailable"] < replicas(objects, found[0].owner), name
            case "NetworkPolicy":
                assert any(selects(each["spec"]["podSelector"], one.labels) for one in every), name
            case "HorizontalPodAutoscaler":
                target = each["spec"]["scaleTargetRef"]
                assert "replicas" not in of(objects, target["kind"], target["name"])["spec"], "the two would fight"


def replicas(objects: tuple[dict[str, Any], ...], owner: str) -> int:
    """How many pods of a kind there are at least."""
    kind, name, *group = owner.split("/")
    spec: Mapping[str, Any] = of(objects, kind, name)["spec"]
    if group:
        (found,) = (each for each in spec["rayClusterConfig"]["workerGroupSpecs"] if each["groupName"] == group[0])
        return int(found["minReplicas"])
    scalers = [each["spec"] for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    return int(spec.get("replicas") or next(each["minReplicas"] for each in scalers if each["scaleTargetRef"]["name"] == name))


@pytest.mark.parametrize("settings", ALL)
def test_whoever_is_called_lets_the_caller_in(settings: tuple[str, ...]) -> None:
    """Each pair of components that talk, by both sides' policies."""
    objects = render(*settings)
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    if not policies:
        return
    one_of = {each.labels["app.kubernetes.io/component"]: each.labels for each in pods(objects)}
    for caller, callee, port in (
        ("scheduler", "verifier", 50061),
        ("scheduler", "ray-head", 6379),
        ("engine", "scheduler", 10002),
        ("ray-head", "gateway", 8700),
        ("scheduler", "gateway", 8700),
        ("test", "gateway", 8700),
        ("gateway", "postgresql", 5432),
        ("scheduler", "postgresql", 5432),
        ("migrate", "postgresql", 5432),
        ("test", "postgresql", 5432),
    ):
        if {caller, callee} <= {*one_of}:
            for way, mine, other in (("egress", caller, callee), ("ingress", callee, caller)):
                assert allowed(policies, way, one_of[mine], one_of[other], port), f"{caller} to {callee}:{port}, {way}"
    for stranger in {"verifier", "engine", "ray-head"} & {*one_of}:  # and those that do not talk are kept apart
        if "postgresql" in one_of:
            assert not allowed(policies, "egress", one_of[stranger], one_of["postgresql"], 5432)
            assert not allowed(policies, "ingress", one_of["postgresql"], one_of[stranger], 5432)


def allowed(policies: list[Any], way: str, mine: Mapping[str, str], other: Mapping[str, str], port: int) -> bool:
    rules = [rule for each in policies if selects(each["podSelector"], mine) for rule in each.get(way, ())]
    for rule in rules:
        peers = rule.get("to" if way == "egress" else "from")
        reaches = peers is None or any("podSelector" in peer and selects(peer["podSelector"], other) for peer in peers)
        if reaches and ("ports" not in rule or any(each["port"] == port for each in rule["ports"])):
            return True
    return False


def test_a_new_ray_cluster_is_made_for_what_shards_read_once() -> None:
    def marks(*settings: str) -> dict[str, str]:
        found = (each for each in pods(render("small", *settings)) if each.owner.startswith("RayService"))
        return {each.owner: json.dumps(each.metadata["annotations"]) for each in found}

    assert marks("ray.schedulers.shards=2") == marks(), "their number is read anew"
    assert all(mark != marks()[owner] for owner, mark in marks("shards.leaseSeconds=16").items())
    other = marks("engines.groups[0].tolerations[0].operator=Exists")
    assert [owner for owner, mark in other.items() if mark != marks()[owner]] == ["RayService/here-ramify/tiny24"]


def test_a_running_ray_cluster_can_be_told_how_many_pods_there_may_be() -> None:
    """KubeRay does not tell it; helm's notes have a patch that does."""
    after = render(
        "multi-region",
        "ray.schedulers.replicas=4",
        "engines.groups[1].replicas.min=3",
        "engines.groups[2].replicas.max=20",
        'extraObjects[0].data.patch=\\{\\{ include "ramify.groupBounds" . \\}\\}',
        "extraObjects[0].kind=ConfigMap",
        "extraObjects[0].metadata.name=patch",
    )
    groups = json.loads(json.dumps(worker_groups(render("multi-region"))))
    for each in json.loads(of(after, "ConfigMap", "patch")["data"]["patch"]):
        group, name = re.fullmatch(r"/spec/workerGroupSpecs/(\d+)/(\w+)", each["path"]).groups()  # type: ignore[union-attr]
        if each["op"] == "test":
            assert groups[int(group)][name] == each["value"]
        else:
            groups[int(group)][name] = each["value"]
    names = ("groupName", "minReplicas", "maxReplicas")
    assert [[each[name] for name in names] for each in groups] == [
        [each[name] for name in names] for each in worker_groups(after)
    ]
    assert groups[0]["replicas"] == 4, "these do not scale"


def worker_groups(objects: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return of(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]  # type: ignore[no-any-return]


def test_the_dashboard_reaches_grafana() -> None:
    somewhere: dict[str, Any] = {"namespaceSelector": {}}
    assert {"to": [somewhere]} in of(render(*MATRIX["elsewhere"]), "NetworkPolicy", "-ray-head")["spec"]["egress"]
    assert "namespaceSelector" not in json.dumps(of(render("small"), "NetworkPolicy", "-ray-head"))


def test_clients_see_what_a_port_speaks() -> None:
    assert of(render("small"), "Service", "-gateway")["spec"]["ports"][0]["appProtocol"] == "https"
    assert of(render(*MATRIX["plain"]), "Service", "-gateway")["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"
    timeouts = of(render("multi-region"), "BackendTrafficPolicy")["spec"]["timeout"]["http"]
    assert timeouts["requestTimeout"] == timeouts["maxStreamDuration"] == "0s", "watches would be cut"
    nginx = of(render(*MATRIX["doors"]), "Ingress", "-gateway")["metadata"]["annotations"]
    assert nginx["nginx.ingress.kubernetes.io/backend-protocol"] == "GRPCS"


def test_tables_are_made_before_who_needs_them() -> None:
    assert of(render("small"), "Job")["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    assert "--no-migrate" not in json.dumps(of(render("small"), "Deployment", "-gateway"))
    assert of(render("multi-region"), "Job")["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert "--no-migrate" in json.dumps(of(render("multi-region"), "Deployment", "-gateway"))


def test_boards_and_rules_come_as_they_are() -> None:
    objects = render(*MATRIX["odds"])
    boards = {path.name: path.read_text() for path in (ROOT / "infra" / "grafana").glob("*.json")}
    shipped = {name: text for each in objects if "-board-" in each["metadata"]["name"] for name, text in each["data"].items()}
    assert {name: json.loads(text) for name, text in shipped.items()} == {
        f"ramify-{name}": json.loads(text) for name, text in boards.items()
    }
    rules = [yaml.safe_load(path.read_text()) for path in (ROOT / "infra" / "prometheus").glob("*rules*.yaml")]
    assert [each["spec"] for each in objects if each["kind"] == "PrometheusRule"] == rules
    assert boards
    assert rules
    assert (CHART / "files" / "grafana").is_symlink()
