"""The Python client of the job API: `Client`, `AsyncClient`; what they return are the messages of `ramify.v1`."""

from ramify.client.async_client import AsyncClient
from ramify.client.errors import (
    AlreadyExists,
    ClientError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    ServerError,
    Unavailable,
)
from ramify.client.spec import SpecFields, job_spec
from ramify.client.sync_client import Client

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Client",
    "ClientError",
    "InvalidRequest",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "QuotaExceeded",
    "ServerError",
    "SpecFields",
    "Unavailable",
    "job_spec",
]
