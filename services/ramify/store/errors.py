"""Errors of the store."""


class StoreError(Exception):
    """Base of every error that the store raises. What the database itself fails with comes through as `SQLAlchemyError`."""


class CannotOpen(StoreError):
    """The store's URL is wrong, or nothing that we can work with is there; the operator's fault."""


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


class Fenced(StoreError):
    """The writer holds its slots no more: another one has claimed them. It must stop, and nothing was written."""
