"""`ramify keys`, `tenants` and `audit`, on a store of their own."""

import json
from pathlib import Path

import pytest

from ramify.store.keys import parts_of
from ramify.v1 import job_pb2
from tests.unit.cli.conftest import Ramify
from tests.unit.client.fake_gateway import FakeGateway


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path))
    monkeypatch.delenv("RAMIFY_STORE", raising=False)
    return tmp_path


def test_the_life_of_a_key(ramify: Ramify) -> None:
    made = ramify("keys", "create", "--tenant", "acme", "--role", "read", "--name", "ci", "--expires-days", "90")
    parts = parts_of(made.out.strip())
    assert made.code == 0
    assert parts is not None
    assert f"key {parts[0]} of tenant acme, role read, until " in made.err
    assert parts[1] not in made.err
    listed = ramify("keys", "list").out
    assert parts[0] in listed
    assert "good" in listed
    assert parts[1] not in listed
    assert ramify("keys", "revoke", made.out.strip()).err == f"key {parts[0]} (ci) of tenant acme is revoked\n"
    (record,) = (json.loads(line) for line in ramify("keys", "list", "--tenant", "acme", "--json").out.splitlines())
    assert (record["key_id"], record["role"], record["revoked"] is None) == (parts[0], "read", False)
    everything = "".join(ramify("audit", *more).out for more in ((), ("--json",), ("--tenant", "acme")))
    assert "keys.create" in everything
    assert "keys.revoke" in everything
    assert parts[1] not in everything


def test_what_a_tenant_may_have(ramify: Ramify) -> None:
    assert ramify("tenants", "list").err.startswith("no tenants;")
    ramify("tenants", "set", "acme", "--weight", "2", "--jobs-max", "5", "--tokens-per-day-max", "1000000")
    shown = json.loads(ramify("tenants", "set", "acme", "--jobs-max", "0", "--json").out)
    assert (shown["weight"], shown["jobs_max"], shown["tokens_per_day_max"]) == (2.0, None, 1_000_000)
    assert "1,000,000" in ramify("tenants", "list").out
    assert ramify("tenants", "remove", "acme").code == 0
    assert ramify("tenants", "remove", "acme").code == 2
    actions = [json.loads(line)["action"] for line in ramify("audit", "--json").out.splitlines()]
    assert actions == ["tenants.remove", "tenants.set", "tenants.set"]
    (last,) = (json.loads(line) for line in ramify("audit", "--json", "--after", "2").out.splitlines())
    assert (last["number"], last["action"]) == (3, "tenants.remove")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("keys", "create", "--name", "x", "--role", "root"), "--role is one of read, submit, operate, not 'root'"),
        (("keys", "create", "--name", "x", "--tenant", "a b"), "a tenant's name has 1 to 64 letters"),
        (("keys", "create", "--name", "x", "--expires-days", "0"), "--expires-days"),
        (("keys", "revoke", "nope"), "there is no key 'nope'"),
        (("keys", "list", "--store", "nonsense"), "this is no store that can be opened"),
        (("tenants", "set", "acme", "--weight", "-1"), "--weight"),
        (("audit", "--store-file", "/nowhere"), "/nowhere"),
    ],
)
def test_what_is_wrong_is_told(ramify: Ramify, arguments: tuple[str, ...], why: str) -> None:
    outcome = ramify(*arguments)
    assert (outcome.code, why in outcome.err, "Traceback" in outcome.err) == (2, True, False), outcome


def test_jobs_of_several_tenants_are_told_apart(ramify: Ramify, gateway: FakeGateway) -> None:
    gateway.add_job(job_pb2.JobSpec(), []).job.tenant = "acme"
    assert "tenant" not in ramify("jobs").out
    gateway.add_job(job_pb2.JobSpec(), []).job.tenant = "other"
    shown = ramify("jobs").out
    assert "tenant" in shown
    assert "acme" in shown
    assert "other" in shown
