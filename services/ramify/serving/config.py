"""The system file: a TOML file that says what there is to be, see docs/dashboard.md."""

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ramify.scheduler.actors.config import FleetConfig, SystemConfig
from ramify.scheduler.actors.fleet import parse_fleet, read_fleet
from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.errors import FleetError
from ramify.scheduler.slots import SLOTS
from ramify.serving.errors import Misconfigured
from ramify.store.errors import CannotOpen
from ramify.store.location import VARIABLE, store_url
from ramify.tls import ClientTls, TlsError

CLUSTER_VARIABLE = "RAY_CLUSTER_NAME"  # KubeRay sets it
DAY_MS = 24 * 60 * 60 * 1000
LEASE_S_MAX = 3600


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class VerifierTls(Table):
    """See `ClientTls`."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class SystemFile(Table):
    """What the file holds."""

    verifier: str = Field(min_length=1)  # addresses, see `VerifierClient`
    verifier_tls: VerifierTls | None = None  # None: no TLS
    store: str = ""  # SQLAlchemy URL
    store_file: Path | None = None  # that holds it instead; without either, the environment does
    shards: Annotated[int, Field(ge=1, le=SLOTS)] = 1
    lease_s: Annotated[float, Field(ge=1, le=LEASE_S_MAX)] = 15.0
    retain_days: Annotated[float, Field(ge=0)] | None = None  # jobs that ended longer ago are deleted; None: none is
    trees_max: Annotated[int, Field(ge=1)] = ShellLimits().trees_max
    cluster: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*$")] = ""  # of Ray; empty: as the environment says
    shard_cpus: Annotated[float, Field(ge=0)] = 0  # that Ray keeps for each; without, all may be on one node
    shard_labels: dict[str, str] = Field(default_factory=dict)  # of the nodes where supervisor and shards run
    fleet: dict[str, Any] | None = None  # see docs/regions.md
    fleet_file: Path | None = None  # that holds it instead


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to be, and the files that say so."""

    config: SystemConfig
    files: tuple[Path, ...]


def read_system(path: Path) -> Source:
    """What a system file says.

    Raises:
        Misconfigured: says what is wrong, and where.
    """
    try:
        found = parse_system(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Misconfigured(f"the system file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the system file {path} is no TOML: {error}") from error
    except Misconfigured as error:
        raise Misconfigured(f"the system file {path}: {error}") from error
    return replace(found, files=(path, *found.files))


def parse_system(content: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Source:
    """What a table says. Raises `Misconfigured`."""
    try:  # as JSON, in which a path is a text
        file = SystemFile.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}" for each in error.errors(include_url=False)]
        raise Misconfigured("; ".join(told)) from error
    retention_ms = None if file.retain_days is None else round(file.retain_days * DAY_MS)
    config = SystemConfig(
        store_url=_store(file, environment),
        verifier_address=file.verifier,
        fleet=_fleet(file),
        shards=file.shards,
        limits=ShellLimits(file.trees_max, round(1000 * file.lease_s), retention_ms=retention_ms),
        labels=file.shard_labels,
        verifier_tls=_tls(file.verifier_tls),
        strays=False,
        shard_cpus=file.shard_cpus,
        cluster=file.cluster or environment.get(CLUSTER_VARIABLE, ""),
    )
    return Source(config, () if file.fleet_file is None else (file.fleet_file,))


def with_fleet(config: SystemConfig, fleet_file: Path | None) -> Source:
    """A system whose fleet is in a file, if it is. Raises `Misconfigured`."""
    if fleet_file is None:
        return Source(config, ())
    return Source(replace(config, fleet=_read_fleet(fleet_file)), (fleet_file,))


def files(source: Source) -> Iterable[Path]:
    """Those that say what there is to be."""
    return source.files


def _store(file: SystemFile, environment: Mapping[str, str]) -> str:
    if file.store and file.store_file:
        raise Misconfigured("store and store_file both say where the store is: give one of them")
    try:
        found = store_url(file.store or None, file.store_file) if file.store or file.store_file else environment.get(VARIABLE)
    except CannotOpen as error:
        raise Misconfigured(f"store_file: {error}") from error
    if not found:
        raise Misconfigured(f"store_file: nothing says where the store is: give store_file or store, or {VARIABLE}")
    return found


def _fleet(file: SystemFile) -> FleetConfig:
    if (file.fleet is None) == (file.fleet_file is None):
        raise Misconfigured("fleet: say which engines there are, in a table [fleet] or in a fleet_file, and not in both")
    if file.fleet_file is not None:
        return _read_fleet(file.fleet_file)
    try:
        return parse_fleet(file.fleet or {})
    except FleetError as error:
        raise Misconfigured(f"fleet.{error}") from error


def _read_fleet(path: Path) -> FleetConfig:
    try:
        return read_fleet(path)
    except FleetError as error:
        raise Misconfigured(str(error)) from error


def _tls(tls: VerifierTls | None) -> ClientTls | None:
    if tls is None:
        return None
    try:
        found = ClientTls(tls.ca, tls.certificate, tls.key)
        found.credentials()  # what can't be read is told before anything starts
    except TlsError as error:
        raise Misconfigured(f"verifier_tls: {error}") from error
    return found
