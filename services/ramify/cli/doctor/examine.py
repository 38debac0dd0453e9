"""Which checks are made, and in which order."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ramify.cli.doctor import bodies, leases, opening, postgres, running, sqlite, upkeep, work
from ramify.cli.doctor.counters import counters
from ramify.cli.doctor.findings import Check, Finding, Level, made
from ramify.cli.doctor.running import Service
from ramify.cli.doctor.subject import Subject
from ramify.store.jobs import Jobs, ModelRow

CHECK_S = 60.0  # how long one may take
DEEP_CHECK_S = 24 * 3600.0

_OF_SQLITE: tuple[tuple[str, Check[Subject]], ...] = (("file", sqlite.file_is_sound), ("disk", sqlite.space))
_OF_POSTGRES: tuple[tuple[str, Check[Subject]], ...] = (
    ("server", postgres.server),
    ("isolation", postgres.isolation),
    ("connections", postgres.connections),
    ("notices", postgres.notices),
    ("transactions", postgres.activity),
    ("disk", postgres.space),
)
_OF_TABLES: tuple[tuple[str, Check[Subject]], ...] = (
    ("clock", leases.clock),
    ("shards", leases.shards_are_heard_of),
    ("slots", leases.slots_are_held),
    ("waits", work.waits),
    ("progress", work.jobs_move),
    ("models", work.pins),
    ("segments", bodies.segments_are_sound),
    ("snapshots", bodies.snapshots_are_sound),
    ("archives", bodies.archives_are_sound),
    ("upkeep", upkeep.freeable),
)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is to be looked at."""

    store_url: str = ""  # empty: no store
    gateway: Service | None = None
    verifier: Service | None = None
    deep: bool = False
    stopped: bool = False  # it is known that no system runs on the store


async def examine(patient: Patient, begin: Callable[[str], None]) -> AsyncIterator[Finding]:
    """All findings, as they come; `begin` is told the name of each check that begins."""
    models: Sequence[ModelRow] = ()
    if patient.store_url:
        begin("store")
        opens, subject = await opening.opened(patient.store_url, deep=patient.deep, stopped=patient.stopped)
        yield opens
        if subject is not None:
            try:
                async for finding in _of_store(subject, begin):
                    yield finding
                    if (finding.name, finding.level) == ("schema", Level.OK):
                        models = await Jobs(subject.database).models()
            finally:
                await subject.database.close()
    if patient.gateway is not None:
        async for finding in _of_gateway(patient.gateway, begin, alone=not patient.store_url):
            yield finding
    if patient.verifier is not None:
        async for finding in _of_verifier(patient.verifier, begin, models):
            yield finding


async def _of_store(subject: Subject, begin: Callable[[str], None]) -> AsyncIterator[Finding]:
    limit_s = DEEP_CHECK_S if subject.deep else CHECK_S
    begin("schema")
    schema = await made("schema", opening.schema(subject), limit_s)
    yield schema
    checks = list(_OF_SQLITE if subject.path is not None else _OF_POSTGRES)
    if schema.level is Level.OK:
        checks += [*_OF_TABLES, *([("counters", counters)] if subject.deep else [])]
    for name, check in checks:
        begin(name)
        yield await made(name, check(subject), limit_s)
    if schema.level is not Level.OK:
        yield Finding("other checks", Level.SKIPPED, "can't be made on tables of another version")


async def _of_gateway(service: Service, begin: Callable[[str], None], *, alone: bool) -> AsyncIterator[Finding]:
    begin("gateway")
    serves = await made("gateway", running.answers(service, "gateway"), CHECK_S)
    yield serves
    if serves.level is not Level.OK:
        return
    checks: list[tuple[str, Check[Service]]] = [
        ("gateway version", running.gateway_version),
        ("gateway latency", running.gateway_latency),
    ]
    if alone:
        checks.append(("waits", running.gateway_waits))
    for name, check in checks:
        begin(name)
        yield await made(name, check(service), CHECK_S)


async def _of_verifier(service: Service, begin: Callable[[str], None], models: Sequence[ModelRow]) -> AsyncIterator[Finding]:
    begin("verifier")
    serves = await made("verifier", running.answers(service, "verifier"), CHECK_S)
    yield serves
    if serves.level is Level.OK:
        yield await made("verifier models", running.verifier_models(service, models), CHECK_S)
