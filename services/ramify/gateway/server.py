"""The gateway's server: plain grpc.aio with standard health and reflection."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from ramify.gateway.access import Access
from ramify.gateway.calls import METHODS, SERVICE, CallInterceptor
from ramify.gateway.errors import CannotListen
from ramify.gateway.limits import GatewayLimits
from ramify.gateway.metrics import Metrics
from ramify.gateway.service import JobService
from ramify.store.database import Database
from ramify.tls import ServerTls, TlsError
from ramify.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server

OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),  # as the proto says; a tree that is sent may be larger
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 2048),  # of one connection; further calls of its client wait there
    ("grpc.max_allowed_incoming_connections", 8192),
    ("grpc.server_handshake_timeout_ms", 20_000),  # a connection that never says what it wants is closed
    ("grpc.so_reuseport", 0),  # a second gateway on the port is a mistake and must not go unseen
    # A client that vanished without a word must not hold its calls for gRPC's two hours.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # After a while a client is asked to connect anew: so new gateways get their part of the load, and certificates are looked at
    # again. Streams that are open have the grace to end by themselves; clients take up others where they were.
    ("grpc.max_connection_age_ms", 10 * 60_000),
    ("grpc.max_connection_age_grace_ms", 5 * 60_000),
)


class Gateway:
    """A gRPC server over one store."""

    def __init__(
        self,
        database: Database,
        limits: GatewayLimits | None = None,
        *,
        tls: ServerTls | None = None,
        keys: bool = False,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Made in the event loop that it is to run in.

        Args:
            database: the store.
            limits: what bounds it.
            tls: None: no TLS.
            keys: callers must have an API key; else they all are the default tenant.
            registry: where it tells how it fares; None: nowhere.
        """
        limits, metrics = limits or GatewayLimits(), Metrics(registry or CollectorRegistry())
        metrics.expect(METHODS)
        self.health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        self._tls = tls
        self._access = Access(database, limits, keys=keys)
        self._service = JobService(database, limits, metrics)
        interceptors = [CallInterceptor(self._access, limits, metrics)]
        self._server = grpc.aio.server(interceptors=interceptors, options=OPTIONS)
        add_JobServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, listen: str) -> int:
        """Listen on `host:port` (port 0: any); returns the port. Raises `CannotListen`."""
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, self._tls.credentials())
        except TlsError as error:
            raise CannotListen(f"TLS: {error}") from error
        except RuntimeError as error:
            raise CannotListen(f"{listen} can't be had; is it taken? Give another one with --listen HOST:PORT") from error
        await self._server.start()
        for name in ("", SERVICE):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; end watches and uploads that wait, so that their clients go on elsewhere; others have `grace_s`."""
        await self.health.enter_graceful_shutdown()
        self._service.stop()
        await self._server.stop(grace_s)
        self._access.stop()
