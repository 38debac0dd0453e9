"""Errors of the store."""

from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError


class StoreError(Exception):
    """Base of every error that the store raises. What else the database fails with comes through as `SQLAlchemyError`."""


class CannotOpen(StoreError):
    """The store's URL is wrong, or nothing that we can work with is there; the operator's fault."""


class StoreOutage(StoreError, SQLAlchemyError):
    """The store can't do it now: the same call may succeed later, and is safe to repeat.

    It is unknown whether a write has happened if the connection broke at its end. Also a `SQLAlchemyError`, which is what a
    caller catches who wants to try again whatever the database has failed with.
    """


class StoreUnavailable(StoreOutage):
    """The database can't be reached, or has ended the connection."""


class StoreBusy(StoreOutage):
    """No connection was free, or others have held what was needed, for as long as a call may wait."""


class Contention(StoreBusy):
    """Two transactions stood in each other's way, and this one was undone. `to_its_end` tries again before anybody sees it."""


class DiskFull(StoreOutage):
    """The database has no space left; the operator's fault. Once there is some, all goes on."""


class JobNotFound(StoreError):
    """No job of that name; the caller's fault."""


class ProblemNotFound(StoreError):
    """No problem of that index; the caller's fault."""


class Conflict(StoreError):
    """A request id, or a place in an upload, was used before with another body; the caller's fault."""


class UploadError(StoreError):
    """A chunk that doesn't fit the upload as it stands; the caller's fault."""


class UploadEnded(StoreError):
    """The upload was cancelled, undone by another call or expired while this call was at it."""


class InvalidName(StoreError):
    """A tenant or a key can't be called so; the operator's fault."""


class KeyNotFound(StoreError):
    """No API key of that id; the operator's fault."""


class QuotaExceeded(StoreError):
    """A tenant has used up what it may have; the same call succeeds once there is room again."""

    def __init__(self, message: str, tenant: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.tenant, self.retry_s = tenant, retry_s  # seconds until there will be room, where that is known


class QuotaTooSmall(StoreError):
    """A job needs more at once than its tenant may ever have."""


class Damaged(StoreError):
    """Bytes in the store are not what was written."""


class Fenced(StoreError):
    """The writer holds some of its slots no more: another one has claimed them. It must stop, and nothing was written."""

    def __init__(self, owner: str, slots: Sequence[int]) -> None:
        super().__init__(owner, slots)  # all that it takes to make another one, which is how it travels between processes
        self.owner, self.slots = owner, tuple(slots)

    def __str__(self) -> str:
        return f"{self.owner} does not hold slots {', '.join(map(str, self.slots))} any more: another has taken over"
