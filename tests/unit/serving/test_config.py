"""The system file as an operator writes it down."""

from pathlib import Path

import pytest

from ramify.scheduler.actors.config import shard_choices
from ramify.serving.config import CLUSTER_VARIABLE, parse_system, read_system
from ramify.serving.errors import Misconfigured
from ramify.store.location import VARIABLE
from ramify.tls import ClientTls

WHOLE = """
store_file = "{folder}/url"
verifier = "dns:///verifier:50061"
shards = 2
shard_cpus = 1
lease_s = 20
retain_days = 0.5
trees_max = 100
cluster = "blue"
shard_labels = {{ "ramify.dev/role" = "scheduler" }}

[verifier_tls]
ca = "{folder}/ca.pem"

[fleet]
[[fleet.engines]]
spec = "simulated"
count = 2
"""
FLEET = {"engines": [{"spec": "simulated"}]}
LEAST = {"store": "sqlite+aiosqlite:///a", "verifier": "there:1", "fleet": FLEET}


def test_a_system_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://there/ramify\n")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    path = tmp_path / "system.toml"
    path.write_text(WHOLE.format(folder=tmp_path))
    source = read_system(path)
    config = source.config
    assert source.files == (path,)
    assert (config.store_url, config.verifier_address) == ("postgresql://there/ramify", "dns:///verifier:50061")
    assert config.verifier_tls == ClientTls(tmp_path / "ca.pem")
    assert (config.shards, config.shard_cpus, config.cluster, len(config.fleet.engines)) == (2, 1, "blue", 2)
    limits = config.limits
    assert (limits.lease_ms, limits.retention_ms, limits.trees_max) == (20_000, 12 * 60 * 60 * 1000, 100)
    assert shard_choices(config, 0) == [{"ramify.dev/role": "scheduler"}], "no shard strays onto a machine of the engines"


def test_the_environment_says_what_the_file_does_not(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[engines]]\nspec = "simulated"')
    environment = {VARIABLE: "postgresql://x/y", CLUSTER_VARIABLE: "ramify-raycluster-abcde"}
    source = parse_system({"verifier": "there:1", "fleet_file": str(fleet)}, environment)
    assert (source.config.store_url, source.config.cluster) == ("postgresql://x/y", "ramify-raycluster-abcde")
    assert source.files == (fleet,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shards": 0}, "shards: input should be greater than or equal to 1"),
        ({"shards": "2"}, "shards: input should be a valid integer"),
        ({"shrads": 2}, "shrads: extra inputs are not permitted"),
        ({"verifier": ""}, "verifier: string should have at least 1 character"),
        ({"verifier_tls": {"key": "a"}}, "verifier_tls: a client's certificate and its key belong together"),
        ({"verifier_tls": {"ca": "/none"}}, "verifier_tls: [Errno 2] No such file or directory: '/none'"),
        ({"store_file": "a"}, "store and store_file both say where the store is"),
        ({"store": ""}, "nothing says where the store is: give store_file or store, or RAMIFY_STORE"),
        ({"store": "", "store_file": "/none"}, "can't be read"),
        ({"fleet": None}, "fleet: say which engines there are"),
        ({"fleet_file": "a"}, "fleet: say which engines there are"),
        ({"fleet": None, "fleet_file": "/none"}, "the fleet /none can't be read"),
        ({"fleet": {"engines": [{}]}}, "fleet.engines.0.spec: field required"),
        ({"cluster": "a/b"}, "cluster: string should match pattern"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Misconfigured) as found:
        parse_system({key: value for key, value in {**LEAST, **fields}.items() if value is not None}, {})
    assert message in str(found.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "system.toml"
    with pytest.raises(Misconfigured, match=f"the system file {path} can't be read: No such file"):
        read_system(path)
    path.write_text("shards = ")
    with pytest.raises(Misconfigured, match=f"the system file {path} is no TOML"):
        read_system(path)
    path.write_text("shards = 1")
    with pytest.raises(Misconfigured, match=f"the system file {path}: verifier: field required"):
        read_system(path)
