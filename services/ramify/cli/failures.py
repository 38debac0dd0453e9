"""What is said, and with which exit code, when a command fails."""

from typer.exceptions import TyperException

from ramify.cli.errors import CliError, UsageError
from ramify.client import AlreadyExists, ClientError, InvalidRequest, NotFound, PermissionDenied

#: Exit code of what the user can mend.
USER_FAULT = 2

_USER_FAULTS = (UsageError, AlreadyExists, InvalidRequest, NotFound, PermissionDenied)


def explain(error: Exception) -> tuple[str, int]:
    """The message for stderr, one or two lines, and the exit code."""
    if isinstance(error, TyperException):
        return _of_command_line(error), USER_FAULT
    if isinstance(error, (CliError, ClientError)):
        return f"ramify: {error}", USER_FAULT if isinstance(error, _USER_FAULTS) else 1
    if isinstance(error, UnicodeEncodeError):
        return "ramify: an argument is not valid UTF-8", USER_FAULT
    if isinstance(error, OSError):
        return f"ramify: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", 1
    return (
        f"ramify: this should not have happened: {type(error).__name__}: {error}\n"
        "Set RAMIFY_DEBUG=1 to see where, and please report it."
    ), 1


def _of_command_line(error: TyperException) -> str:
    message = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    hint = f"\nSee `{context.command_path} --help`." if context is not None else ""
    return f"ramify: {message}{hint}"
