"""What a database fails with, as errors of ours: the one place that knows the drivers' codes."""

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ramify.store.errors import Contention, DiskFull, StoreBusy, StoreOutage, StoreUnavailable

log = logging.getLogger(__name__)

#: By SQLSTATE, or by its first two characters.
OF_SQLSTATE: Mapping[str, type[StoreOutage]] = MappingProxyType(
    {
        "08": StoreUnavailable,  # the connection failed
        "0A000": Contention,  # a migration has changed what a statement was prepared for, which is forgotten with the transaction
        "25006": StoreUnavailable,  # a standby, or a primary that has become one
        "25P03": StoreUnavailable,  # this client stood still within a transaction for too long
        "40001": Contention,  # serialization failure
        "40P01": Contention,  # deadlock
        "53100": DiskFull,
        "53200": StoreBusy,  # out of memory
        "53300": StoreBusy,  # too many connections
        "55P03": StoreBusy,  # lock timeout
        "57014": StoreBusy,  # statement timeout
        "57P": StoreUnavailable,  # shutting down, crashed, starting up
    }
)

#: By primary or extended result code.
OF_SQLITE: Mapping[int, type[StoreOutage]] = MappingProxyType(
    {
        sqlite3.SQLITE_BUSY: StoreBusy,
        sqlite3.SQLITE_LOCKED: StoreBusy,
        sqlite3.SQLITE_FULL: DiskFull,
        sqlite3.SQLITE_IOERR_SHMSIZE: DiskFull,  # no space for the index of the write-ahead log
        sqlite3.SQLITE_IOERR: StoreUnavailable,
        sqlite3.SQLITE_CANTOPEN: StoreUnavailable,
    }
)

_TELLS: Mapping[type[StoreOutage], str] = MappingProxyType(
    {
        StoreUnavailable: "the store's database does not answer: try again; work goes on by itself once it is back",
        StoreBusy: "the store's database is too busy: try again",
        Contention: "the store's database is too busy: others changed the same again and again; try again",
        DiskFull: "the store's disk is full: free space, and work goes on by itself",
    }
)
_NO_CONNECTION = "all connections to the store's database are in use: try again"


@contextmanager
def translated() -> Iterator[None]:
    """Raise our error for what the database fails with in the block, if there is one; anything else comes through.

    Its message is fit for any caller: the driver's words, which may hold addresses, are its cause, and are logged.
    """
    try:
        yield
    except StoreOutage:
        raise
    except SQLAlchemyError as error:
        kind = kind_of(error)
        if kind is None:
            raise
        if kind is not Contention:
            log.warning("%s: %s", kind.__name__, reason(error))
        raise kind(_NO_CONNECTION if isinstance(error, PoolTimeout) else _TELLS[kind]) from error


def kind_of(error: SQLAlchemyError) -> type[StoreOutage] | None:
    """The class of ours that says what has happened, if one does."""
    if isinstance(error, PoolTimeout):
        return StoreBusy
    if not isinstance(error, DBAPIError):
        return None
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return OF_SQLITE.get(code) or OF_SQLITE.get(code & 0xFF)
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # said by the client's library: there was no server to give it a code
        return StoreUnavailable if isinstance(error, OperationalError) else None
    return next((OF_SQLSTATE[state[:length]] for length in (5, 3, 2) if state[:length] in OF_SQLSTATE), None)


def reason(error: BaseException) -> str:
    """What went wrong, in a line, without the statement and the links that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__
