"""A fleet as an operator writes it down: a TOML file with engines, regions and what matters."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ramify.scheduler.actors.config import REGION_LABEL, EngineConfig, FleetConfig
from ramify.scheduler.engines.registry import gpus_of
from ramify.scheduler.errors import FleetError
from ramify.scheduler.placement import Region, Terms

STRICT = ConfigDict(extra="forbid")
ENGINES_MAX = 10_000  # of one entry
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
    region: str = ""
    name: str = ""  # they are called name:0, name:1, ...; empty: as their region is
    labels: dict[str, str] = field(default_factory=dict)
    gpus: float | None = None  # that each has; None: as the spec says


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What the file holds."""

    __pydantic_config__ = STRICT
    engines: list[EngineEntry]
    regions: dict[str, Region] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    region_label: str = REGION_LABEL
    home: str = ""


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
    taken, engines = Counter[str](), []
    for entry in file.engines:
        name = entry.name or entry.region or HERE
        gpus = gpus_of(entry.spec) if entry.gpus is None else entry.gpus
        for _ in range(entry.count):
            engines.append(EngineConfig(f"{name}:{taken[name]}", entry.spec, entry.region, entry.labels, gpus))
            taken[name] += 1
    weights = {f"{name}_weight": value for name, value in asdict(file.weights).items()}
    return FleetConfig(tuple(engines), Terms(file.regions, **weights), file.region_label, file.home)


def _check(file: FleetFile) -> None:
    if not sum(entry.count for entry in file.engines):
        raise FleetError("engines: there is none; a fleet has one at least")
    for at, entry in enumerate(file.engines):
        if not 0 <= entry.count <= ENGINES_MAX:
            raise FleetError(f"engines.{at}.count is {entry.count}, not from 0 to {ENGINES_MAX}")
        if entry.gpus is not None and entry.gpus < 0:
            raise FleetError(f"engines.{at}.gpus is {entry.gpus}, less than none")
        if file.regions and entry.region and entry.region not in file.regions:
            raise FleetError(f"engines.{at}.region is {entry.region!r}, which is none of the regions {', '.join(file.regions)}")
    if file.regions and file.home and file.home not in file.regions:
        raise FleetError(f"home is {file.home!r}, which is none of the regions {', '.join(file.regions)}")
    for name, region in file.regions.items():
        for each in fields(region):
            if getattr(region, each.name) < 0:
                raise FleetError(f"regions.{name}.{each.name} is {getattr(region, each.name)}, less than nothing")
    for each in fields(file.weights):
        if getattr(file.weights, each.name) < 0:
            raise FleetError(f"weights.{each.name} is {getattr(file.weights, each.name)}: what matters has a weight above 0")
