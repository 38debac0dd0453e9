"""The local system as applications of Ray Serve, which the dashboard's Serve tab shows."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ramify.client.settings import Settings
from ramify.local.errors import Misconfigured, StartFailed
from ramify.tls import ServerTls

if TYPE_CHECKING:
    from ramify.scheduler.actors.config import SystemConfig


def check_http(http: str, gateway_tls: ServerTls | None) -> None:
    """Refuse an address, or a gateway, that the HTTP surface can't have. Raises `Misconfigured`."""
    host, _, port = http.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise Misconfigured(f"--http is HOST:PORT, such as 127.0.0.1:8000, not {http!r}")
    if gateway_tls is not None and Settings().client_tls() is None:
        raise Misconfigured("--http calls the gateway, which speaks TLS: set RAMIFY_TLS_CA, by which its certificate is trusted")


def deploy(system: "SystemConfig", fleet: Path | None, patience_s: float) -> None:
    """Start the system as the application `system`; returns when jobs can be submitted. Raises `StartFailed`."""
    from ray import serve

    from ramify.serving.config import with_fleet
    from ramify.serving.system import NAME, System

    app = System.bind(partial(with_fleet, system, fleet), patience_s)  # type: ignore[attr-defined] # Serve has no types
    try:
        serve.run(app, name=NAME, route_prefix=None)
    except RuntimeError as error:
        told = serve.status().applications[NAME].message
        raise StartFailed(f"the scheduler did not start: {told.strip().splitlines()[-1]}") from error


def deploy_http(http: str, gateway: str) -> None:
    """Start the HTTP surface as the application `http`. Raises `StartFailed`."""
    from ray import serve

    from ramify.http.settings import HttpSettings
    from ramify.serving.surface import NAME, Surface

    settings = Settings()
    surface = HttpSettings(
        gateway=gateway, tls=settings.tls, tls_ca=settings.tls_ca, tls_cert=settings.tls_cert, tls_key=settings.tls_key
    )
    try:
        serve.run(Surface.bind(surface), name=NAME, route_prefix="/")  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise StartFailed(f"the HTTP surface did not start: {serve.status().applications[NAME].message}") from error


def start(http: str) -> None:
    """Start Serve itself, with an HTTP proxy if there is to be one."""
    from ray import serve

    host, _, port = http.rpartition(":")
    serve.start(http_options={"location": "HeadOnly" if http else "NoServer", "host": host, "port": int(port or 0)})


def delete() -> None:
    """End the applications: open requests first, then the shards commit, and all actors end."""
    from ray import serve

    for name in [name for name in ("http", "system") if name in serve.status().applications]:
        serve.delete(name)
