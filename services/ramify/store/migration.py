"""Revisions of the tables: which one is there, whether this code can work with it, and how the newest one comes about."""

import functools
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select

from ramify.store.errors import CannotOpen
from ramify.store.schema import compatibility

FOLDER = Path(__file__).parent / "migrations"


class Fit(Enum):
    """How tables stand to this code."""

    MISSING = "there are none"
    OLD = "of an older version; `migrate` brings them up to date"
    CURRENT = "of this version"
    AHEAD = "of a newer version, and this one can work with them"
    UNKNOWN = "of a newer version, and this one can't work with them"


@dataclass(frozen=True, slots=True)
class Tables:
    """What was found."""

    revision: str  # empty: none
    fit: Fit


@dataclass(frozen=True, slots=True)
class Migration:
    """What `migrate` has done: nothing, where both are the same."""

    before: str  # empty: there were no tables
    after: str


@functools.cache
def newest() -> str:
    """The revision that this code makes."""
    return str(ScriptDirectory(str(FOLDER)).get_current_head())


@functools.cache
def known() -> frozenset[str]:
    """All revisions that this code knows."""
    return frozenset(script.revision for script in ScriptDirectory(str(FOLDER)).walk_revisions())


def look(connection: Connection) -> Tables:
    """The tables that are there."""
    revision = MigrationContext.configure(connection).get_current_revision() or ""
    if not revision:
        return Tables(revision, Fit.MISSING)
    if revision in known():
        return Tables(revision, Fit.CURRENT if revision == newest() else Fit.OLD)
    return Tables(revision, Fit.AHEAD if _readable_from(connection) in known() else Fit.UNKNOWN)


def check(connection: Connection) -> None:
    """Raises `CannotOpen` where there are no tables with which this version can work as they are."""
    there = look(connection)
    if there.fit in (Fit.MISSING, Fit.OLD):
        found = f"its tables are of revision {there.revision}" if there.revision else "it has no tables of Ramify"
        raise CannotOpen(f"{found}, and this version works with {newest()}: run `ramify migrate` of this version first")
    _refuse_unknown(there)


def upgrade(connection: Connection) -> Migration:
    """Make the tables this version's, in the connection's transaction; newer ones that it can work with stay as they are.

    Raises:
        CannotOpen: they are of a newer version that says that this one can't work with them.
    """
    there = look(connection)
    _refuse_unknown(there)
    if there.fit in (Fit.CURRENT, Fit.AHEAD):
        return Migration(there.revision, there.revision)
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
    return Migration(there.revision, newest())


def _refuse_unknown(there: Tables) -> None:
    if there.fit is Fit.UNKNOWN:
        raise CannotOpen(
            f"its tables are of revision {there.revision}, and this version of Ramify knows up to {newest()}: "
            "run the version that has migrated it, or a later one"
        )


def _readable_from(connection: Connection) -> str | None:
    if not inspect(connection).has_table(compatibility.name):
        return None
    return connection.execute(select(compatibility.c.readable_from)).scalar()
