"""Errors of a local system."""


class LocalError(Exception):
    """Base of every error that a local system raises; each is for the user to read."""


class Misconfigured(LocalError):
    """What was asked for can't be: an engine, an option or a fleet is wrong by itself."""


class AlreadyRunning(LocalError):
    """Another system works on the same folder, or holds the address."""


class StartFailed(LocalError):
    """A part of the system did not start."""
