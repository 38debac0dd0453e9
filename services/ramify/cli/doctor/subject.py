"""What the checks of a store look at."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from ramify.store.database import Database
from ramify.store.schema import jobs
from ramify.v1 import job_pb2


@dataclass(frozen=True, slots=True)
class Subject:
    """A store that is open."""

    database: Database
    deep: bool = False  # look at everything, however long it takes; else at a bounded part of it
    stopped: bool = False  # it is known that no system runs on it

    @property
    def path(self) -> Path | None:
        """Of SQLite's file; None: it is another database."""
        return sqlite_path(self.database.url)

    @property
    def shown(self) -> str:
        """Its address as people may see it."""
        return shown(self.database.url)

    async def running_jobs(self) -> int:
        """How many jobs run."""
        query = select(func.count()).select_from(jobs).where(jobs.c.state == job_pb2.JOB_STATE_RUNNING)
        async with self.database.read() as connection:
            return int(await connection.scalar(query) or 0)


def sqlite_path(url: str) -> Path | None:
    """The file that the URL of a store names, if it is SQLite's."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def shown(url: str) -> str:
    """The URL of a store, or the path of its file, without its password."""
    path = sqlite_path(url)
    return str(path) if path is not None else make_url(url).render_as_string(hide_password=True)
