"""`ramify migrate`: bring a store's tables up to date."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.engine import make_url

from ramify.cli.errors import CliError, UsageError
from ramify.store.database import EXAMPLES, Database
from ramify.store.errors import CannotOpen
from ramify.store.location import VARIABLE, store_url
from ramify.store.migration import Migration, newest


def migrate(
    store: Annotated[str | None, typer.Option(metavar="URL", help=f"The store; else {VARIABLE}.")] = None,
    store_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file that holds the store's URL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Bring a store's tables up to date, and say from which revision to which.

    Makes them if there are none. Jobs go on meanwhile, and so do processes of the version before. A store that a newer version
    has migrated stays as it is if this one can work with it; else the exit code is 1.
    """
    try:
        url = store_url(store, store_file)
        if url is None:
            raise UsageError(f"say which store: --store URL, --store-file FILE or {VARIABLE}; a URL is like {EXAMPLES}")
        done = asyncio.run(_migrate(url))
    except CannotOpen as error:
        raise CliError(str(error)) from error
    told = {"store": make_url(url).render_as_string(hide_password=True), "before": done.before or None, "after": done.after}
    typer.echo(json.dumps(told) if as_json else f"{told['store']}: {_says(done)}")


def _says(done: Migration) -> str:
    if done.before != done.after:
        return f"migrated from {done.before or 'nothing'} to {done.after}"
    if done.after == newest():
        return f"is at {done.after}, which is this version's: nothing to do"
    return f"is at {done.after}, of a newer version, which this one ({newest()}) can work with: left as it is"


async def _migrate(url: str) -> Migration:
    database = Database(url)
    try:
        return await database.migrate()
    finally:
        await database.close()
