"""What an installation shows of itself: no secret where it does not belong, and no more rights than it needs."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.helm.chart import Pods, config, of, pods, render
from tests.helm.test_objects import MATRIX

ALL = [pytest.param(settings, id=name) for name, settings in MATRIX.items()]


def containers(found: Pods) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for each in (*found.spec["containers"], *found.spec.get("initContainers", ())):
        yield f"{found.owner}/{each['name']}", each


@pytest.mark.parametrize("settings", ALL)
def test_no_container_has_more_rights_than_it_needs(settings: tuple[str, ...]) -> None:
    objects = render(*settings)
    for found in pods(objects):
        assert found.spec["securityContext"]["runAsNonRoot"], found.owner
        assert found.spec["securityContext"]["runAsUser"] > 0, found.owner
        assert found.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, found.owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {*found.spec}, found.owner
        assert not any("hostPath" in volume for volume in found.spec.get("volumes", ())), found.owner
        # KubeRay gives the head the service account of its autoscaler, which has to ask Kubernetes for nodes.
        assert found.owner.endswith("/head") or found.spec["automountServiceAccountToken"] is False, found.owner
        for name, container in containers(found):
            context = container["securityContext"]
            assert context["runAsNonRoot"], name
            assert context["readOnlyRootFilesystem"], name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), name
    autoscaler = of(objects, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert autoscaler["securityContext"]["readOnlyRootFilesystem"]
    assert not any(each["kind"] in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") for each in objects)


@pytest.mark.parametrize("settings", ALL)
def test_secrets_are_in_secrets_alone(settings: tuple[str, ...]) -> None:
    objects = render(*settings)
    secrets = [
        value
        for each in objects
        if each["kind"] == "Secret"
        for value in {**each.get("data", {}), **each.get("stringData", {})}.values()
    ]
    elsewhere = json.dumps([each for each in objects if each["kind"] != "Secret"])
    assert not [value for value in secrets if value in elsewhere]
    assert "PRIVATE KEY" not in elsewhere
    assert not re.search(r"://[^/\s\"]*:[^/\s\"]*@", elsewhere), "a URL with a password"
    for found in pods(objects):
        for name, container in containers(found):
            for variable in container.get("env", ()):
                if re.search(r"TOKEN|PASSWORD(?!_FILE)|SECRET|API_KEY$", variable["name"]):
                    assert [*variable["valueFrom"]] == ["secretKeyRef"], f"{name}: {variable['name']}"
        for volume in found.spec.get("volumes", ()):
            if "secret" in json.dumps(volume) and "claimName" not in json.dumps(volume):
                mode = volume.get("projected", volume.get("secret"))["defaultMode"]
                assert mode == 0o440, f"{found.owner}: {volume['name']} has mode {mode:o}"


def test_keys_and_tls_are_on_unless_said_otherwise() -> None:
    arguments = of(render("small"), "Deployment", "-gateway")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--keys", "--tls-cert=/etc/ramify/tls/tls.crt", "--tls-key=/etc/ramify/tls/tls.key"} <= {*arguments}
    verifier = of(render("small"), "Deployment", "-tiny24")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--tls-client-ca=/etc/ramify/tls/ca.crt" in verifier
    assert "[verifier_tls]" in config(render("small"), "system.toml")
    plain = render(*MATRIX["plain"])
    assert "--keys" not in json.dumps(plain)
    assert "tls.crt" not in json.dumps(plain)


def test_nobody_has_a_secret_that_it_does_not_use() -> None:
    has = {found.labels["app.kubernetes.io/component"]: json.dumps(found.spec["volumes"]) for found in pods(render("small"))}
    assert {name for name, volumes in has.items() if "store/url" in volumes} == {"gateway", "scheduler", "migrate", "test"}
    assert {name for name, volumes in has.items() if "tls.key" in volumes} == {"gateway", "scheduler", "verifier"}


@pytest.mark.parametrize("settings", ALL)
def test_a_file_that_is_named_is_there(settings: tuple[str, ...]) -> None:
    objects = render(*settings)
    by_owner = {found.owner.rpartition("/")[2]: found for found in pods(objects)}
    serve = of(objects, "RayService")["spec"]["serveConfigV2"]
    for owner, found in by_owner.items():
        named = json.dumps([found.spec["containers"], [serve, config(objects, "system.toml")] if owner == "schedulers" else []])
        volumes = [each["projected"]["sources"] for each in found.spec["volumes"] if "projected" in each]
        files = {
            item["path"] for sources in volumes for source in sources for item in next(iter(source.values())).get("items", ())
        }
        files |= {"system.toml", "fleet.toml"} if owner == "schedulers" else set()
        assert {*re.findall(r"/etc/ramify/([\w./-]+\w)", named)} <= files, found.owner
        if "store.caKey=authority" in settings and "store/url" in files:
            assert "store/ca.crt" in files, found.owner  # which the URL names
    if "gateway.clientCa.existingSecret=clients" in settings:
        assert "tls_cert: /etc/ramify/" in serve
        assert "RAMIFY_TLS_CERT" in json.dumps(by_owner["here-ramify-test"].container["env"])


def test_ray_is_let_alone() -> None:
    """Whoever reaches its ports may run code there: that is Ray, KubeRay, and at the HTTP surface whoever may call it."""
    rules = of(render(*MATRIX["doors"]), "NetworkPolicy", "-ray")["spec"]["ingress"]
    metrics = {8080, 44217, 44227}
    for rule in rules:
        if not {each["port"] for each in rule.get("ports", ())} <= metrics or "ports" not in rule:
            assert rule["from"], rule
            assert all("podSelector" in peer or "ipBlock" in peer for peer in rule["from"]), rule
    (operator,) = next(rule["from"] for rule in rules if {"port": 52365, "protocol": "TCP"} in rule.get("ports", ()))
    assert operator["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}


def test_ray_asks_for_a_token() -> None:
    assert of(render("small"), "RayService")["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    own = of(render(*MATRIX["elsewhere"]), "RayService")["spec"]["rayClusterConfig"]["authOptions"]
    assert own == {"mode": "token", "secretName": "token"}


@pytest.mark.parametrize("settings", ALL)
def test_what_is_not_named_is_denied(settings: tuple[str, ...]) -> None:
    objects = render(*settings)
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    if "networkPolicy.enabled=false" in settings:
        assert not policies
        return
    shut, *_ = policies
    assert shut["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in shut
    for found in pods(objects):
        assert shut["podSelector"]["matchLabels"].items() <= found.labels.items(), found.owner
    assert {"port": 53, "protocol": "UDP"} in shut["egress"][0]["ports"], "names can't be looked up"
