"""What can go wrong in the verifier: the caller's faults, the operator's and ours, apart.

`status.py` has the one table from these classes to gRPC status codes. It is a file of its own because the gateway
imports `ramify.verifier.rules`, and with it this file, without wanting gRPC.
"""


class VerifierError(Exception):
    """Base of every error that this package raises."""


class RequestError(VerifierError):
    """The caller's fault: the same request will fail again."""


class InvalidRequestError(RequestError):
    """The request breaks a limit or a rule of the protocol."""


class ProblemError(InvalidRequestError, ValueError):
    """A text states no problem that the rule knows. The message says what is wrong, where, and what is expected."""


class UnknownModelError(RequestError):
    """The server has no model of that name."""


class RevisionError(RequestError):
    """The model is of another revision than the one that the caller's scores are to be of."""


class ServiceError(VerifierError):
    """Our fault, or our state: the same request may succeed later."""


class OverloadedError(ServiceError):
    """The queue is full.

    Args:
        message: What is full, for people.
        retry_delay_ms: When the queue will probably have room again.
    """

    def __init__(self, message: str, retry_delay_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_delay_ms = retry_delay_ms


class DeadlineError(ServiceError):
    """The caller's deadline passed before the scores were there."""


class UnavailableError(ServiceError):
    """The server is starting, stopping or cannot be reached."""


class ModelError(ServiceError):
    """A model's backend failed on a batch."""


class StartupError(VerifierError):
    """The operator's fault: what was asked for on the command line cannot be served."""
