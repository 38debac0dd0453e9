"""What the command says when it can't go on."""


class CliError(Exception):
    """Base of the command's own errors; the message is for people."""


class UsageError(CliError):
    """The user's fault: arguments, settings or files. The message says what is wrong and what to do."""


class ProblemFileError(UsageError):
    """A problem file can't be used; the message begins with the file and, where there is one, the line."""
