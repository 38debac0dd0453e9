"""`ramify migrate`: bring a store's tables up to date."""

import asyncio
import json

import typer
from sqlalchemy.engine import make_url

from ramify.cli.at_store import HOME, HomeOption, JsonOption, StoreFileOption, StoreOption, local_store
from ramify.cli.errors import CliError
from ramify.store.database import Database
from ramify.store.errors import CannotOpen
from ramify.store.location import store_url
from ramify.store.migration import Migration, newest


def migrate(
    store: StoreOption = None, store_file: StoreFileOption = None, home: HomeOption = HOME, as_json: JsonOption = False
) -> None:
    """Bring a store's tables up to date, and say from which revision to which.

    Makes them if there are none. Jobs go on meanwhile, and so do processes of the version before. A store that a newer version
    has migrated stays as it is if this one can work with it; else the exit code is 1.
    """
    try:
        url = store_url(store, store_file) or local_store(home)
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
