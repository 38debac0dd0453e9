"""`ramify audit`: who has done what."""

import sys
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from ramify.cli.at_store import HOME, HomeOption, JsonOption, StoreFileOption, StoreOption, at_store, iso, moment
from ramify.cli.output import make_console, one_line, print_json
from ramify.cli.tables import table
from ramify.store.audit import OK, Audit, Entry
from ramify.store.database import Database


def audit(
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this one's keys have done.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="COUNT", help="The newest so many.")] = 50,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="NUMBER", help="Those that follow this entry of --json, the oldest first.")
    ] = None,
    store: StoreOption = None,
    store_file: StoreFileOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """List who has done what, and what was refused to whom, the newest first."""

    def read(database: Database) -> Awaitable[list[Entry]]:
        log = Audit(database)
        return log.latest(limit, tenant) if after is None else log.following(after, limit, tenant)

    found = at_store(store, store_file, home, read)
    if as_json:
        for entry in found:
            print_json({"at": iso(entry.at_ms), **{name: value for name, value in asdict(entry).items() if name != "at_ms"}})
        return
    if not found:
        print("no entries", file=sys.stderr)
        return
    shown = table("at (UTC)", "who", "tenant", "did", "to", "outcome", "detail:")
    for entry in found:
        who = one_line(entry.key_id or entry.peer)
        outcome = Text(entry.outcome, "green" if entry.outcome == OK else "red")
        detail = Text(one_line(entry.detail), no_wrap=True, overflow="ellipsis")
        shown.add_row(moment(entry.at_ms), who, entry.tenant or "–", entry.action, one_line(entry.subject), outcome, detail)
    make_console().print(shown)
