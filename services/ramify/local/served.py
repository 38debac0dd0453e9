"""The local system as applications of Ray Serve, which the dashboard's Serve tab shows."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.client.settings import Settings
from ramify.local.errors import Misconfigured, StartFailed
from ramify.tls import ServerTls

if TYPE_CHECKING:
    from ramify.scheduler.actors.config import SystemConfig


HTTP, SYSTEM = "http", "system"  # names of applications


def check_http(http: str, gateway_tls: ServerTls | None) -> None:
    """Refuse an address, or a gateway, that the HTTP surface can't have. Raises `Misconfigured`."""
    host, _, port = http.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise Misconfigured(f"--http is HOST:PORT, such as 127.0.0.1:8000, not {http!r}")
    if gateway_tls is not None and Settings().client_tls() is None:
        raise Misconfigured("--http calls the gateway, which speaks TLS: set RAMIFY_TLS_CA, by which its certificate is trusted")


def deploy(system: "SystemConfig", fleet: Path | None, patience_s: float) -> None:
    """Start the system as the application `system`; returns when jobs can be submitted. Raises `StartFailed`."""
    from ramify.serving.config import with_fleet
    from ramify.serving.system import System

    _run(System.bind(partial(with_fleet, system, fleet), patience_s), SYSTEM, None)  # type: ignore[attr-defined] # Serve has no types


def deploy_http(gateway: str) -> None:
    """Start the HTTP surface as the application `http`. Raises `StartFailed`."""
    from ramify.http.settings import HttpSettings
    from ramify.serving.surface import Surface

    settings = Settings()
    surface = HttpSettings(
        gateway=gateway, tls=settings.tls, tls_ca=settings.tls_ca, tls_cert=settings.tls_cert, tls_key=settings.tls_key
    )
    _run(Surface.bind(surface), HTTP, "/")  # type: ignore[attr-defined]


def _run(app: Any, name: str, route_prefix: str | None) -> None:
    from ray import serve

    try:
        serve.run(app, name=name, route_prefix=route_prefix)
    except RuntimeError as error:
        told = "".join(each.message for each in serve.status().applications[name].deployments.values())
        raise StartFailed(f"the application {name} did not start: {told.strip().splitlines()[-1]}") from error


def start(http: str) -> None:
    """Start Serve itself, with an HTTP proxy if there is to be one."""
    from ray import serve

    host, _, port = http.rpartition(":")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it would tell the terminal of each step
    serve.start(http_options={"location": "HeadOnly" if http else "NoServer", "host": host, "port": int(port or 0)})


def delete() -> None:
    """End the applications: open requests first, then the shards commit, and all actors end."""
    from ray import serve

    for name in [name for name in (HTTP, SYSTEM) if name in serve.status().applications]:
        serve.delete(name)
