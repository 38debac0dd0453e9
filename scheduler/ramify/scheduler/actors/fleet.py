"""A fleet as an operator writes it down: a TOML file with engines, regions and what matters."""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ramify.scheduler.actors.config import REGION_LABEL, EngineConfig, EngineGroup, FleetConfig
from ramify.scheduler.autoscaling import IDLE_S, Bounds
from ramify.scheduler.engines.registry import gpus_of
from ramify.scheduler.errors import FleetError
from ramify.scheduler.placement import Region, Terms

STRICT = ConfigDict(extra="forbid")
ENGINES_MAX = 10_000  # of one entry
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")  # what Ray takes as a label's value
LABELS_ARE = "at most 63 letters, digits, '.', '_' and '-', the first and last a letter or a digit"
HERE = "local"  # what engines are called that belong to no region


@dataclass(frozen=True, slots=True)
class Weights:
    """What matters to the operator, see `Terms.cost`."""

    __pydantic_config__ = STRICT
    price: float = Terms().price_weight
    delay: float = Terms().delay_weight
    carbon: float = Terms().carbon_weight


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """Some engines that are alike."""

    __pydantic_config__ = STRICT
    spec: str
    count: int = 1
    count_min: int | None = None  # the group has at least so many, see `autoscaling`; None: 1
    count_max: int | None = None  # and at most so many; None: it has `count` of them
    idle_s: float = IDLE_S
    region: str = ""
    name: str = ""  # they are called name:0, name:1, ...; empty: as their region is
    labels: dict[str, str] = field(default_factory=dict)
    gpus: float | None = None  # that each has; None: as the spec says
    cpus: float = 0  # that Ray keeps for each; as many as a node has, and each has a node of its own

    @property
    def called(self) -> str:
        """What comes before the colon of their names."""
        return self.name or self.region or HERE


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What the file holds."""

    __pydantic_config__ = STRICT
    engines: list[EngineEntry]
    regions: dict[str, Region] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    region_label: str = REGION_LABEL


def read_fleet(path: Path) -> FleetConfig:
    """The fleet that a file describes.

    Raises:
        FleetError: says what is wrong, and where in the file.
    """
    try:
        return parse_fleet(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FleetError(f"the fleet {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FleetError(f"the fleet {path} is no TOML: {error}") from error
    except FleetError as error:
        raise FleetError(f"the fleet {path}: {error}") from error


def parse_fleet(content: Mapping[str, Any]) -> FleetConfig:
    """The fleet that a table describes. Raises `FleetError`."""
    try:
        file = TypeAdapter(FleetFile).validate_python(content)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}" for each in error.errors()]
        raise FleetError("; ".join(told)) from error
    _check(file)
    alike = {entry.called: (_engine(entry), entry) for entry in file.engines}
    fixed = [
        replace(engine, name=f"{name}:{index}")
        for name, (engine, entry) in alike.items()
        if entry.count_max is None
        for index in range(entry.count)
    ]
    groups = [
        EngineGroup(engine, entry.count, Bounds(entry.count_min or 1, entry.count_max, entry.idle_s))
        for engine, entry in alike.values()
        if entry.count_max is not None
    ]
    weights = {f"{name}_weight": value for name, value in asdict(file.weights).items()}
    return FleetConfig((*fixed,), Terms(file.regions, **weights), file.region_label, groups=(*groups,)).scaled({})


def _engine(entry: EngineEntry) -> EngineConfig:
    gpus = gpus_of(entry.spec) if entry.gpus is None else entry.gpus
    return EngineConfig(entry.called, entry.spec, entry.region, entry.labels, gpus, entry.cpus)


def _check(file: FleetFile) -> None:
    _require(sum(entry.count for entry in file.engines) > 0, "engines: there is none; a fleet has one at least")
    called = Counter(entry.called for entry in file.engines)
    for at, entry in enumerate(file.engines):
        here = f"engines.{at}"
        _require(0 <= entry.count <= ENGINES_MAX, f"{here}.count is {entry.count}, not from 0 to {ENGINES_MAX}")
        _require(entry.gpus is None or 0 <= entry.gpus < inf, f"{here}.gpus is {entry.gpus}, no number of GPUs")
        _require(0 <= entry.cpus < inf, f"{here}.cpus is {entry.cpus}, no number of CPUs")
        _check_group(entry, here)
        known = f"which is none of the regions {', '.join(file.regions)}"
        _require(not file.regions or entry.region in ("", *file.regions), f"{here}.region is {entry.region!r}, {known}")
        twice = f"{here} is called {entry.called}, and so is another one: give it a name of its own"
        _require(called[entry.called] == 1, twice)
        for what, value in (
            ("region", entry.region),
            ("name", entry.name),
            *((f"labels.{key}", entry.labels[key]) for key in entry.labels),
        ):
            _require(LABEL.fullmatch(value) is not None, f"{here}.{what} is {value!r}: {LABELS_ARE}")
    for name, region in file.regions.items():
        for each in fields(region):
            value = getattr(region, each.name)
            _require(0 <= value < inf, f"regions.{name}.{each.name} is {value}, not a number from 0 on")
    for each in fields(file.weights):
        value = getattr(file.weights, each.name)
        _require(0 <= value < inf, f"weights.{each.name} is {value}, not a number from 0 on")


def _check_group(entry: EngineEntry, here: str) -> None:
    """What is said of how many there may be."""
    if entry.count_max is None:
        _require(entry.count_min is None, f"{here}.count_min is given, and count_max, up to which the group may grow, is not")
        return
    least = 1 if entry.count_min is None else entry.count_min
    _require(least >= 1, f"{here}.count_min is {least}: a group keeps one engine at least, or its model would be forgotten")
    _require(entry.count_max <= ENGINES_MAX, f"{here}.count_max is {entry.count_max}, more than {ENGINES_MAX}")
    between = f"from count_min, {least}, to count_max, {entry.count_max}"
    _require(
        least <= entry.count <= entry.count_max, f"{here}.count, with which the group starts, is {entry.count}, not {between}"
    )
    _require(0 <= entry.idle_s < inf, f"{here}.idle_s is {entry.idle_s}, not a number of seconds")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise FleetError(message)
