"""Fleets as operators write them down, and what is said of an engine that no node can have."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String

from ramify.scheduler.actors.autoscaler import Autoscaler
from ramify.scheduler.actors.config import (
    EngineConfig,
    EngineGroup,
    FleetConfig,
    SystemConfig,
    placed,
    selectors,
    shard_choices,
    shard_labels,
    shard_owner,
    supervisor_choices,
    unplaceable,
)
from ramify.scheduler.actors.engine_actor import RayEngine, crowded_out
from ramify.scheduler.actors.fleet import read_fleet
from ramify.scheduler.actors.lanes import LaneStatus
from ramify.scheduler.autoscaling import Bounds
from ramify.scheduler.errors import FleetError
from ramify.scheduler.placement import Region, Routing, Terms
from ramify.store.schema import shards

LOCAL_REGIONS = Path(__file__).parents[3] / "infra" / "local-regions" / "fleet.toml"

WHOLE = """
region_label = "example.com/place"

[weights]
price = 2.0
carbon = 0.01

[regions.west]
price_per_hour = 3.5
[regions.north]
price_per_hour = 2
round_trip_ms = 40
carbon_g_per_kwh = 25

[[engines]]
spec = "vllm:model?tensor_parallel_size=2"
region = "north"
count = 2
labels = { "ray.io/accelerator-type" = "H200" }

[[engines]]
spec = "simulated"
region = "north"
name = "small"

[[engines]]
spec = "simulated"
name = "spare"
gpus = 0.5
cpus = 2
"""


def read(folder: Path, text: str) -> FleetConfig:
    path = folder / "fleet.toml"
    path.write_text(text)
    return read_fleet(path)


def test_a_fleet_is_read(tmp_path: Path) -> None:
    fleet = read(tmp_path, WHOLE)
    labels = {"ray.io/accelerator-type": "H200"}
    assert fleet.engines == (
        EngineConfig("north:0", "vllm:model?tensor_parallel_size=2", "north", labels, 2),
        EngineConfig("north:1", "vllm:model?tensor_parallel_size=2", "north", labels, 2),
        EngineConfig("small:0", "simulated", "north"),
        EngineConfig("spare:0", "simulated", gpus=0.5, cpus=2),
    )
    assert fleet.terms == Terms({"west": Region(3.5), "north": Region(2, 40, 25)}, 2.0, Terms().delay_weight, 0.01)
    assert fleet.region_label == "example.com/place"


def test_the_fleet_of_the_local_regions_prefers_what_it_says() -> None:
    terms = read_fleet(LOCAL_REGIONS).terms
    assert min(terms.regions, key=lambda name: terms.cost(name, Routing())) == "us-east"
    assert min(terms.regions, key=lambda name: terms.cost(name, Routing(carbon_weight=0.1))) == "eu-north"
    assert min(terms.regions, key=lambda name: terms.cost(name, Routing(delay_weight=1))) == "eu-west"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engines = []", "engines: there is none; a fleet has one at least"),
        ("", "engines: field required"),
        ("[[engines]]", "engines.0.spec: field required"),
        ("[[engines]]\nspec = 'simulated'\ncuont = 3", "engines.0.cuont: unexpected keyword argument"),
        ("[[engines]]\nspec = 'simulated'\ncount = -1\n[[engines]]\nspec = 'simulated'\ncount = 2", "engines.0.count is -1"),
        ("[[engines]]\nspec = 'simulated'\ncount = 'many'", "engines.0.count: input should be a valid integer"),
        ("[[engines]]\nspec = 'simulated'\ncount_min = 2", "engines.0.count_min is given, and count_max, up to which"),
        ("[[engines]]\nspec = 'simulated'\ncount_min = 2\ncount_max = 4", "is 1, not from count_min, 2, to count_max, 4"),
        ("[[engines]]\nspec = 'simulated'\ncount_min = 0\ncount_max = 4", "engines.0.count_min is 0: a group keeps one"),
        ("[[engines]]\nspec = 'simulated'\ngpus = -1", "engines.0.gpus is -1.0, no number of GPUs"),
        ("[[engines]]\nspec = 'simulated'\ncpus = -1", "engines.0.cpus is -1.0, no number of CPUs"),
        (
            "[regions.a]\n[regions.b]\n[[engines]]\nspec = 'simulated'\nregion = 'c'",
            "engines.0.region is 'c', which is none of the regions a, b",
        ),
        (
            "[[engines]]\nspec = 'simulated'\nregion = 'a'\n[[engines]]\nspec = 'simulated'\nregion = 'a'\nname = ''",
            "engines.0 is called a, and so is another one: give it a name of its own",
        ),
        ("[[engines]]\nspec = 'simulated'\nregion = 'eu north'", "engines.0.region is 'eu north': at most 63 letters"),
        ("[[engines]]\nspec = 'simulated'\nlabels = { kind = '-a' }", "engines.0.labels.kind is '-a': at most 63 letters"),
        ("[weights]\nprice = nan\n[[engines]]\nspec = 'simulated'", "weights.price is nan, not a number from 0 on"),
        ("[regions.a]\nprice_per_hour = -2\n[[engines]]\nspec = 'simulated'", "regions.a.price_per_hour is -2.0, not a number"),
        ("[regions.a]\nprice = 2\n[[engines]]\nspec = 'simulated'", "regions.a.price: unexpected keyword argument"),
        ("[weights]\ncarbon = -1\n[[engines]]\nspec = 'simulated'", "weights.carbon is -1.0, not a number from 0 on"),
        ("[[engines", "is no TOML: Expected"),
    ],
)
def test_what_is_wrong_with_a_fleet_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FleetError, match=f"^the fleet {tmp_path}/fleet.toml") as found:
        read(tmp_path, text)
    assert message in str(found.value)


def test_a_fleet_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"the fleet .*/none.toml can't be read: No such file"):
        read_fleet(tmp_path / "none.toml")


def node(gpus: float = 0, *, alive: bool = True, region: str = "", zone_region: str = "") -> dict[str, Any]:
    labels = {"ray.io/region": region, "ray.io/availability-region": zone_region}
    return {"Alive": alive, "Labels": {key: value for key, value in labels.items() if value}, "Resources": {"GPU": gpus}}


def test_an_engine_s_region_is_told_by_either_of_two_labels_and_by_the_operator_s_own_alone() -> None:
    engine = EngineConfig("a", "simulated", "eu", {"kind": "x"})
    assert selectors(engine, "ray.io/region") == [
        {"ray.io/region": "eu", "kind": "x"},
        {"ray.io/availability-region": "eu", "kind": "x"},
    ]
    assert selectors(engine, "own") == [{"own": "eu", "kind": "x"}]
    assert selectors(EngineConfig("a", "simulated"), "own") == [{}]
    assert placed([{}]) == {}
    assert placed([{"own": "eu"}, {}]) == {"label_selector": {"own": "eu"}, "fallback_strategy": [{"label_selector": {}}]}


def test_why_no_node_can_have_an_engine_is_said() -> None:
    engine = EngineConfig("a", "simulated", "eu", gpus=2)
    choices = selectors(engine, "ray.io/region")
    assert unplaceable(choices, engine.gpus, [node(region="eu", gpus=2)]) == ""
    assert unplaceable(choices, engine.gpus, [node(zone_region="eu", gpus=4)]) == ""
    nodes = [node(region="us"), node(region="us"), node(), node(alive=False, region="eu", gpus=8)]
    assert unplaceable(choices, engine.gpus, nodes) == (
        "no node has the label ray.io/region=eu or ray.io/availability-region=eu; there are 1 with none of these labels; "
        "2 with ray.io/region=us: start one with `ray start --labels`, or mend the labels"
    )
    assert unplaceable(choices, engine.gpus, [node(region="eu", gpus=1)]) == (
        "it needs 2 GPUs on one node with ray.io/region=eu or ray.io/availability-region=eu, and the largest has 1"
    )
    assert unplaceable([{}], 1, [node()]) == "it needs 1 GPUs on one node, and the largest has 0"


def test_a_group_has_as_many_engines_as_it_is_told_within_its_bounds(tmp_path: Path) -> None:
    group = '[[engines]]\nspec = "simulated"\nname = "a"\ncount = 2\ncount_max = 4\nidle_s = 9\n'
    fleet = read(tmp_path, group + '[[engines]]\nspec = "simulated"\nname = "b"')
    assert fleet.groups == (EngineGroup(EngineConfig("a", "simulated"), 2, Bounds(1, 4, 9.0)),)
    assert fleet.counts == {"a": 2, "b": 1}
    assert [engine.name for engine in fleet.scaled({"a": 3}).engines] == ["b:0", "a:0", "a:1", "a:2"]
    assert fleet.scaled({"a": 9}).counts == {"a": 4, "b": 1}
    assert fleet.scaled({"a": 9}).scaled({"a": 2}) == fleet


def test_what_all_shards_ask_of_a_group_is_counted_and_what_it_may_do_without_is_remembered(tmp_path: Path) -> None:
    fleet = read(tmp_path, '[[engines]]\nspec = "simulated"\nname = "a"\ncount_max = 8\nidle_s = 10')
    scaler = Autoscaler()

    def lane(engine: str, slots: int, waiting: int, under_way: int) -> LaneStatus:
        return LaneStatus(engine, True, "", slots, leaves=False, waiting=waiting, under_way=under_way)

    busy = [lane("a:0", 4, 10, 8), lane("a:0", 4, 2, 4), lane("a:1", 0, 0, 0), lane("other:0", 4, 999, 999)]
    assert scaler.counts(fleet, busy, 0.0) == {"a": 4}
    grown, calm = fleet.scaled({"a": 4}), [lane("a:0", 4, 0, 1)]
    assert [scaler.counts(grown, calm, now_s)["a"] for now_s in (1.0, 10.0, 11.0)] == [4, 4, 3]


def test_a_shard_s_name_in_the_store_tells_its_ray_cluster_and_fits(tmp_path: Path) -> None:
    def owner(cluster: str) -> str:
        return shard_owner(SystemConfig("", "", FleetConfig(()), cluster=cluster), 63, "9f2c04d1")

    assert owner("") == "shard:63@9f2c04d1"
    assert owner("blue") == "blue/shard:63@9f2c04d1"
    long = [owner("a-service-with-a-name-that-is-rather-long-raycluster-" + end) for end in ("x7k2p", "q9m4c")]
    assert long[0] != long[1]
    room = shards.c.owner.type
    assert isinstance(room, String)
    assert room.length
    assert all(len(each) <= room.length for each in long)


def test_a_shard_that_may_not_stray_waits_for_a_node_of_its_own() -> None:
    config = SystemConfig("", "", FleetConfig(()), labels={"role": "scheduler"})
    assert shard_choices(config, 0) == [{"role": "scheduler"}, {}]
    strict = replace(config, strays=False)
    assert shard_choices(strict, 0) == supervisor_choices(strict) == [{"role": "scheduler"}]
    assert shard_choices(replace(strict, labels={}), 0) == [{}]


def test_shards_belong_where_the_system_says() -> None:
    fleet = FleetConfig(())
    assert shard_labels(SystemConfig("", "", fleet), 0) == {}
    here = SystemConfig("", "", fleet, labels={"ray.io/node-id": "a"}, shard_labels=({"node": "b"},))
    assert [shard_labels(here, index) for index in range(2)] == [{"node": "b"}, {"ray.io/node-id": "a"}]


def test_engines_for_which_there_are_no_gpus_are_told() -> None:
    configs = [EngineConfig(str(at), "simulated", "eu", gpus=gpus) for at, gpus in enumerate((2, 1, 1, 0))]
    engines = [RayEngine(config, selectors(config, "ray.io/region"), None) for config in configs]
    nodes = [node(region="us", gpus=8) | {"NodeID": "a"}, node(region="eu", gpus=2) | {"NodeID": "b"}]
    nodes.append(node(region="eu", gpus=1) | {"NodeID": "c"})
    away = crowded_out(engines, nodes)
    assert {engine.name: str(error) for engine, error in away.items()} == {
        "2": "it needs 1 GPUs, and those that there are others take"
    }
    assert crowded_out(engines, nodes[:1]) == {}, "what no node can ever have is told otherwise"
