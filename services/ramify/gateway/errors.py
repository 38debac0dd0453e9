"""Errors of the gateway, and the one table from errors to gRPC status."""

import grpc

from ramify.store.errors import Conflict, Fenced, JobNotFound, ProblemNotFound, StoreError, UploadError


class GatewayError(Exception):
    """Base of every error that the gateway raises."""


class InvalidRequest(GatewayError):
    """The caller's fault; the message says what is wrong, where, and what to do."""


class NotReady(GatewayError):
    """The system has no model yet: it is starting, or `ramify up` does not run."""


class TooManyWatches(GatewayError):
    """More open watches than the gateway bears."""


STATUS: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UploadError: grpc.StatusCode.INVALID_ARGUMENT,
    JobNotFound: grpc.StatusCode.NOT_FOUND,
    ProblemNotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ALREADY_EXISTS,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    TooManyWatches: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fenced: grpc.StatusCode.INTERNAL,  # a gateway holds no slots
    StoreError: grpc.StatusCode.INTERNAL,
    GatewayError: grpc.StatusCode.INTERNAL,
}


def status_of(error: Exception) -> grpc.StatusCode:
    """The status that tells of an error; INTERNAL for what no table foresees."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), grpc.StatusCode.INTERNAL)
