"""What can be wrong with the applications."""


class ServingError(Exception):
    """Base of the errors of this package."""


class Misconfigured(ServingError):
    """The operator's fault: what an application is told can't be used."""


class Ill(ServingError):
    """Something that belongs to the system has not worked for long."""
