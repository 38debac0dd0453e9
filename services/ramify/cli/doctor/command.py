"""What `ramify doctor` does."""

import asyncio
import logging
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ramify.cli.doctor.examine import Patient, examine
from ramify.cli.doctor.findings import Finding, Level
from ramify.cli.doctor.home import Home
from ramify.cli.doctor.running import Service
from ramify.cli.doctor.subject import shown
from ramify.cli.errors import UsageError
from ramify.cli.output import counted, make_console, print_json
from ramify.client.settings import from_environment
from ramify.store.errors import CannotOpen
from ramify.store.location import store_url

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.BAD: "bold red", Level.SKIPPED: "dim"}
_LEVEL_CELLS = 7
_NAME_CELLS = 15

PROBLEMS = 1  # exit code


def store_named(url: str | None, file: Path | None) -> str | None:
    """The URL that is given or stands in a file; None: neither. Raises `UsageError`."""
    try:
        return store_url(url, file) if url or file else None
    except CannotOpen as error:
        raise UsageError(str(error)) from error


def patient(home: Path | None, store: str | None, address: str | None, verifier: str | None, *, deep: bool) -> Patient:
    """What is to be looked at: what is named, and else the local system and its store.

    Args:
        home: folder of a local system.
        store: URL of a store, in place of that of a home.
        address: of a gateway.
        verifier: address of a verifier.
        deep: whether all that is stored is to be looked at.

    Raises:
        InvalidRequest: an address is none, or the environment's key or TLS can't be used.
    """
    remote = (address or verifier) and not (home or store)
    local = None if store or remote else Home(home or Path.home() / ".ramify")
    url = store or (local.store_url if local else "")
    named = address or (local.gateway if local else "")
    service = None
    if named or not remote:  # perhaps one answers where they usually are
        told = from_environment(named or None)
        expected = bool(named or (local and local.runs))
        service = Service(told["address"], expected=expected, tls=told["tls"], api_key=told["api_key"])
    scorer = verifier or (local.verifier if local else "")
    stopped = local is not None and not local.runs
    return Patient(url, service, Service(scorer, expected=True) if scorer else None, deep, stopped)


def run(patient: Patient, *, as_json: bool) -> None:
    """Makes the checks and tells of them; ends with exit code 1 if something is wrong."""
    console = make_console()
    logging.getLogger("ramify").addHandler(logging.NullHandler())  # what is logged by the way is told by a finding
    findings = asyncio.run(_examine(patient, as_json=as_json))
    if not as_json:
        tell(console, findings, what_of(patient))
    if problems(findings):
        raise typer.Exit(PROBLEMS)


async def _examine(patient: Patient, *, as_json: bool) -> list[Finding]:
    findings = []
    with make_console(stderr=True).status("looking") as status:
        async for finding in examine(patient, lambda name: status.update(f"looking at {name}")):
            findings.append(finding)
            if as_json:
                print_json(asdict(finding))
    return findings


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that are not fine."""
    return [finding for finding in findings if finding.level in (Level.WARN, Level.BAD)]


def what_of(patient: Patient) -> str:
    """What was looked at, in a few words."""
    parts = [shown(patient.store_url)] if patient.store_url else []
    parts += [f"gateway {patient.gateway.address}"] if patient.gateway and patient.gateway.expected else []
    parts += [f"verifier {patient.verifier.address}"] if patient.verifier else []
    return ", ".join(parts)


def tell(console: Console, findings: list[Finding], what: str) -> None:
    """A line for each finding with what there is to say of it below; one line alone if all is fine."""
    wrong = problems(findings)
    made = sum(finding.level is not Level.SKIPPED for finding in findings)
    if not wrong:
        console.print(Text.assemble(("all is well", "bold green"), f": {counted(made, 'check')} of {what}"))
        for finding in findings:
            if finding.level is Level.SKIPPED:
                console.print(_line(finding))
        return
    for finding in findings:
        console.print(_line(finding))
        for text in _below(finding):
            console.print(Padding(text, (0, 0, 0, _LEVEL_CELLS + 2), expand=False))
    bad = sum(finding.level is Level.BAD for finding in wrong)
    counts = [f"{bad} bad"] if bad else []
    counts += [counted(len(wrong) - bad, "warning")] if len(wrong) > bad else []
    console.print(Text.assemble((", ".join(counts), "bold red" if bad else "yellow"), f" in {counted(made, 'check')} of {what}"))


def _line(finding: Finding) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))  # the rest of a long line stands below its beginning
    row.add_column(width=_LEVEL_CELLS)
    row.add_column(width=_NAME_CELLS)
    row.add_column()
    row.add_row(Text(finding.level, _STYLES[finding.level]), Text(finding.name, "bold"), finding.summary)
    return row


def _below(finding: Finding) -> list[Text]:
    lines = [Text(line, "dim") for line in finding.details]
    if finding.why:
        lines.append(Text.assemble(("why: ", "bold"), finding.why))
    if finding.remedy:
        lines.append(Text.assemble(("do: ", "bold"), finding.remedy))
    return lines
