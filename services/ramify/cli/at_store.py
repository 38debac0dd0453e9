"""Commands that work on the store itself, past any gateway: whoever can open it may do what they do."""

import asyncio
import os
import pwd
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from sqlalchemy.exc import SQLAlchemyError

from ramify.cli.errors import CliError, UsageError
from ramify.store.audit import Actor
from ramify.store.database import Database
from ramify.store.errors import CannotOpen, InvalidName, KeyNotFound
from ramify.store.failures import reason
from ramify.store.location import VARIABLE, store_url

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help=f"The store; else {VARIABLE}, else that of the local system.")
]
StoreFileOption = Annotated[Path | None, typer.Option("--store-file", metavar="FILE", help="A file that holds the store's URL.")]
HomeOption = Annotated[Path, typer.Option(envvar="RAMIFY_HOME", help="Folder of a local system.", show_default="~/.ramify")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

HOME = Path.home() / ".ramify"

T = TypeVar("T")


def at_store(store: str | None, store_file: Path | None, home: Path, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something with a store: the one that is named, or the local system's, whose tables are made if need be.

    Raises:
        UsageError: it can't be opened, or what was asked for can't be.
        CliError: it can't do it now.
    """
    try:
        url = store_url(store, store_file)
        return asyncio.run(_at(url or local_store(home), work, migrate=url is None))
    except (CannotOpen, InvalidName, KeyNotFound) as error:
        raise UsageError(str(error)) from error
    except SQLAlchemyError as error:
        raise CliError(f"the store can't do it: {reason(error)}; `ramify doctor --store URL` says more") from error


def local_store(home: Path) -> str:
    """The URL of a local system's store."""
    return f"sqlite+aiosqlite:///{home.absolute() / 'state.db'}"


async def _at(url: str, work: Callable[[Database], Awaitable[T]], *, migrate: bool) -> T:
    database = Database(url)
    try:
        if migrate:
            await database.migrate()
        return await work(database)
    finally:
        await database.close()


def operator() -> Actor:
    """Who runs this command, for the audit log."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container
        name = f"uid {uid}"
    return Actor("", name[:64], f"store from {socket.gethostname()}")


def moment(milliseconds: int | None, otherwise: str = "–") -> str:
    """A time in UTC, to the minute."""
    return otherwise if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def iso(milliseconds: int | None) -> str | None:
    """A time in UTC, as programs read it."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
