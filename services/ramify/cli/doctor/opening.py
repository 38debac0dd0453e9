"""Checks that come first: does the store open, and is its schema this version's."""

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ramify.cli.doctor.findings import Finding, Level, size, words
from ramify.cli.doctor.subject import Subject, shown, sqlite_path
from ramify.store.database import EXAMPLES, Database
from ramify.store.errors import CannotOpen, StoreOutage
from ramify.store.migration import Fit, look, newest

#: First bytes of every SQLite file.
_MAGIC = b"SQLite format 3\0"


async def opened(url: str, *, deep: bool, stopped: bool = False) -> tuple[Finding, Subject | None]:
    """The store at `url`, if it can be opened; the caller closes its database. Makes no file where none is.

    Args:
        url: of the store.
        deep: see `Subject`.
        stopped: likewise.
    """
    try:
        path = sqlite_path(url)
    except ArgumentError:
        return Finding("store", Level.BAD, f"{url!r} is no address of a store", remedy=f"give one like {EXAMPLES}"), None
    if path is not None and (fault := _no_file(path)):
        return fault, None
    try:
        database = Database(url)
    except CannotOpen as error:
        return Finding("store", Level.BAD, str(error)), None
    subject = Subject(database, deep, stopped)
    try:
        async with database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        await database.close()
        return _no_answer(subject, words(error), isinstance(error, StoreOutage)), None
    return Finding("store", Level.OK, shown(url)), subject


def _no_file(path: Path) -> Finding | None:
    if not path.exists():
        return Finding(
            "store",
            Level.BAD,
            f"there is no store at {path}",
            why="without one there are no jobs",
            remedy="`ramify up` makes one; if it is elsewhere, say where with --home or --store",
        )
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        return Finding(
            "store", Level.BAD, f"{path} can't be read: {error.strerror}", remedy="give this user the right to read and write it"
        )
    if start in (b"", _MAGIC):  # a file without a byte is an empty database
        return None
    return Finding(
        "store",
        Level.BAD,
        f"{path} ({size(path.stat().st_size)}) is no SQLite file, or its beginning is overwritten",
        why="nothing of it can be read or written",
        remedy="restore a backup, or give the right path",
    )


def _no_answer(subject: Subject, told: str, outage: bool) -> Finding:
    remedy = "look at the file and the rights to its folder, in which SQLite makes files of its own"
    if subject.path is None:
        remedy = "start the server, or give the right address and password"
    why = "shards pause and the gateway refuses calls until it is back; nothing that was committed is lost" if outage else ""
    return Finding("store", Level.BAD, f"{subject.shown} can't be opened: {told}", why=why, remedy=remedy)


async def schema(subject: Subject) -> Finding:
    """Whether the tables are those of this version. OK means that every other check can be made."""
    async with subject.database.read() as connection:
        tables = await connection.run_sync(look)
    found, head = tables.revision, newest()
    if tables.fit is Fit.CURRENT:
        return Finding("schema", Level.OK, f"{head}, which is this version's")
    if tables.fit is Fit.AHEAD:
        return Finding("schema", Level.OK, f"{found}, of a newer version of Ramify, which this one ({head}) can work with")
    migrate = f"`ramify up`, or `ramify migrate --store '{make_url(subject.database.url).render_as_string()}'`,"
    if tables.fit is Fit.MISSING:
        return Finding(
            "schema",
            Level.BAD,
            "the database has no tables of Ramify",
            remedy=f"{migrate} makes them; if they are elsewhere, give the right address",
        )
    if tables.fit is Fit.OLD:
        return Finding(
            "schema",
            Level.BAD,
            f"the tables are of an older version: {found}, and this one has {head}",
            why="this version can't work with them, and most checks can't be made",
            remedy=f"{migrate} of this version brings them up to date; make a backup before",
        )
    return Finding(
        "schema",
        Level.BAD,
        f"the tables are of a newer version of Ramify: {found}, and this one knows up to {head}",
        why="this version can't work with them",
        remedy="install the version that wrote them, or a later one; tables can't be taken back",
    )
