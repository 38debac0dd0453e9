"""What helm renders is what Kubernetes and KubeRay take, for the presets and whatever can be switched."""

import functools
import json
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.helm.chart import CHART, CRD, PRESETS, Object, refused, render, run, values

ELSEWHERE = (  # operators whose schemas are not at hand
    "cert-manager.io",
    "gateway.envoyproxy.io",
    "gateway.networking.k8s.io",
    "monitoring.coreos.com",
)
OLDEST, NEWEST = "1.30", "1.36"

MATRIX: dict[str, tuple[str, ...]] = {
    "small": ("small",),
    "multi-region": ("multi-region",),
    "plain": ("small", "tls.mode=disabled", "auth.keys=false", "networkPolicy.enabled=false", "http.enabled=false"),
    "elsewhere": (
        "small",
        "postgresql.enabled=false",
        "store.existingSecret=store",
        "verifier.groups=null",
        "verifier.external=a:50061\\,b:50061",
        "tracing.endpoint=http://otel:4317",
        "networkPolicy.storeTo[0].ipBlock.cidr=10.0.0.0/8",
        "ray.auth.existingSecret=token",
        "ray.grafanaHost=http://grafana.monitoring",
        "store.caKey=authority",
    ),
    "secrets": (
        "multi-region",
        "tls.mode=existingSecret",
        "tls.gateway.existingSecret=g",
        "tls.verifier.existingSecret=v",
        "tls.shards.existingSecret=s",
        "gateway.clientCa.existingSecret=clients",
        "tests.apiKeySecret=key",
        "engines.groups[0].runtimeClassName=nvidia",
        "verifier.groups[0].runtimeClassName=nvidia",
        "models.huggingFace.enabled=true",
        "models.huggingFace.tokenSecret=hf",
        "imagePullSecrets[0].name=registry",
        "image.cpu.digest=sha256:" + "0" * 64,
    ),
    "doors": (
        "multi-region",
        "gateway.ingress.enabled=true",
        "gateway.ingress.host=ramify.example.com",
        "gateway.ingress.tlsSecret=cert",
        "http.ingress.enabled=true",
        "http.ingress.host=http.example.com",
        "http.ingress.tlsSecret=cert",
        "gateway.service.type=LoadBalancer",
        "networkPolicy.gatewayFrom[0].ipBlock.cidr=10.0.0.0/8",
    ),
    "odds": (
        "small",
        "fullnameOverride=other",
        "commonLabels.team=a",
        "podAnnotations.note=b",
        "extraEnv[0].name=A",
        "extraEnv[0].value=b",
        "extraObjects[0].apiVersion=v1",
        "extraObjects[0].kind=ConfigMap",
        "extraObjects[0].metadata.name=\\{\\{ .Release.Name \\}\\}-more",
        "tests.enabled=false",
        "migration.enabled=false",
        "podDisruptionBudgets=false",
        "monitoring.rules.enabled=true",
        "monitoring.dashboards.enabled=true",
        "monitoring.podMonitor.enabled=true",
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_linted(preset: str) -> None:
    done = run("lint", "--strict", str(CHART), *values(preset))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("settings", MATRIX.values(), ids=[*MATRIX])
def test_kubernetes_takes_every_object(settings: tuple[str, ...]) -> None:
    objects = render(*settings)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len({*names})
    for each in objects:
        group = each["apiVersion"].rpartition("/")[0]
        if group not in (*ELSEWHERE, "ray.io"):
            valid(json.dumps(each))


@functools.cache
def valid(text: str) -> None:
    each = json.loads(text)
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(each, version, strict=True)


@pytest.fixture(scope="module")
def kuberay() -> jsonschema.Draft202012Validator:
    """What KubeRay takes, without names that it does not know."""
    if not CRD.exists():
        pytest.skip(f"KubeRay's CRDs are not at {CRD}")
    crd = yaml.load(CRD.read_text(), Loader=yaml.CSafeLoader)
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(schema))


def closed(schema: Any) -> Any:
    """A schema whose objects have the properties that it names and no others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    # A property may itself be called `properties`; a schema that has any says that it is an object.
    return (
        inner
        if is_open or schema.get("type") != "object" or not schema.get("properties")
        else {**inner, "additionalProperties": False}
    )


@pytest.mark.parametrize("settings", MATRIX.values(), ids=[*MATRIX])
def test_kuberay_takes_the_ray_service(settings: tuple[str, ...], kuberay: jsonschema.Draft202012Validator) -> None:
    service = ray_service(render(*settings))
    assert [f"{list(error.absolute_path)}: {error.message}" for error in kuberay.iter_errors(service)] == []


def test_a_name_that_kuberay_does_not_know_is_found(kuberay: jsonschema.Draft202012Validator) -> None:
    service = json.loads(json.dumps(ray_service(render("small"))))
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert "livenesProbe" in "".join(error.message for error in kuberay.iter_errors(service))


def ray_service(objects: tuple[Object, ...]) -> Object:
    (found,) = (each for each in objects if each["kind"] == "RayService")
    return found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("small", "gatway.replicas=2"), "Additional property gatway is not allowed"),
        (("small", "gateway.replica=2"), "gateway: Additional property replica is not allowed"),
        (("small", "engines.groups[0].gpu=1"), "engines.groups.0: Additional property gpu is not allowed"),
        (("small", "gateway.replicas=two"), "gateway.replicas: Invalid type. Expected: integer, given: string"),
        (
            ("small", "extraEnv[0].name=A", "extraEnv[0].value=1"),
            "extraEnv.0.value: Invalid type. Expected: string, given: integer",
        ),
        (("small", "logs.format=yaml"), "logs.format must be one of the following"),
        (("small", "engines.groups[0].replicas.min=0"), "engines.groups.0.replicas.min: Must be greater than or equal to 1"),
        (("",), "where is the store? Set store.existingSecret"),
        (("small", "store.existingSecret=a"), "store.existingSecret and postgresql.enabled are both given"),
        (("small", "engines.groups=null"), "there is no engine: set engines.groups"),
        (("small", "verifier.groups=null"), "there is no verifier: set verifier.groups"),
        (("small", "nameOverride=" + 41 * "a"), "has 46 characters, more than 45"),
        (("small", "tls.mode=disabled"), "auth.keys needs TLS"),
        (("small", "tls.mode=existingSecret"), "set tls.gateway.existingSecret"),
        (("small", "tls.mode=certManager"), "set tls.certManager.issuerRef.name"),
        (("multi-region", "gateway.ingress.enabled=true", "gateway.ingress.host=a"), "set tlsSecret"),
        (("multi-region", "http.ingress.enabled=true", "http.ingress.host=a"), "requests carry API keys"),
    ],
)
def test_bad_values_are_refused_and_say_why(settings: tuple[str, ...], told: str) -> None:
    assert told in refused(*settings)


def test_every_value_is_told_of() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())

    def names(known: Any) -> set[str]:
        if isinstance(known, list):
            return set().union(*map(names, known))
        if not isinstance(known, dict):
            return set()
        return {*known.get("properties", ())}.union(*map(names, known.values()))

    assert {name for name in names(schema) if not re.search(rf"\b{name}\b", text)} == {"global", "claims"}  # helm's, Kubernetes'
