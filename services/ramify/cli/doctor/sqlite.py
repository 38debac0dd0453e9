"""Checks of a SQLite file."""

import shutil
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ramify.cli.doctor.findings import Finding, Level, listed, size, words
from ramify.cli.doctor.subject import Subject
from ramify.store.errors import StoreOutage

QUICK_BYTES_MAX = 1 << 30  # a larger file takes too long to be read unless that is asked for
FAULTS_MAX = 20

FREE_BAD = 64 << 20
FREE_WARN = 1 << 30
LOG_WARN = 1 << 30


async def file_is_sound(subject: Subject) -> Finding:
    """SQLite's own check of its pages; with `deep` also of its indexes and of what refers to what."""
    path = subject.path
    assert path is not None
    stored = path.stat().st_size
    if stored > QUICK_BYTES_MAX and not subject.deep:
        return Finding("file", Level.SKIPPED, f"{size(stored)} take a while to read: --deep does")
    found: list[str] = []
    try:
        async with subject.database.read() as connection:
            pragma = "integrity_check" if subject.deep else "quick_check"
            found += (await connection.exec_driver_sql(f"PRAGMA {pragma}({FAULTS_MAX})")).scalars().all()
            if subject.deep:
                orphans: Any = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).fetchmany(FAULTS_MAX)
                found += [f"a row of {row[0]} refers to one of {row[2]} that is not there" for row in orphans]
    except StoreOutage:
        raise
    except SQLAlchemyError as error:
        found.append(words(error))
    faults = [line for line in found if line != "ok"]
    if not faults:
        return Finding("file", Level.OK, f"{size(stored)}, sound")
    return Finding(
        "file",
        Level.BAD,
        f"SQLite finds {path} damaged",
        listed(faults),
        why="what lies in the damaged pages can't be read or written, and more may go with every write",
        remedy=f"stop the system, copy the file, then: sqlite3 {path.name} .recover | sqlite3 new.db; or restore a backup",
    )


async def space(subject: Subject) -> Finding:
    """Space on the disk of the file."""
    path = subject.path
    assert path is not None
    log = _size(path.with_name(path.name + "-wal"))
    return space_found(path.parent, shutil.disk_usage(path.parent).free, stored=_size(path), log=log)


def space_found(folder: Path, free: int, *, stored: int, log: int) -> Finding:
    """What it means that so many bytes are free in the folder of a file and its write-ahead log."""
    told = f"{size(free)} free in {folder}"
    details = (f"the store has {size(stored)}, its write-ahead log {size(log)}",)
    if free < FREE_WARN:
        return Finding(
            "disk",
            Level.BAD if free < FREE_BAD else Level.WARN,
            f"only {told}",
            details,
            why="on a full disk nothing can be committed: shards pause, and go on by themselves once there is space",
            remedy="free some space, or move the folder to a larger disk while no system runs",
        )
    if log > LOG_WARN:
        return Finding(
            "disk",
            Level.WARN,
            f"the write-ahead log has grown to {size(log)}",
            details,
            why="it grows for as long as somebody reads without an end, and reads become slower with it",
            remedy="find who holds the file open (`lsof`), and end what has read for too long",
        )
    return Finding("disk", Level.OK, f"{told}; {details[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
