"""`python -m ramify.gateway`: the gateway as a process of its own."""

import argparse
import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from ramify import logs, tracing
from ramify.gateway.errors import CannotListen
from ramify.gateway.server import Gateway
from ramify.health import health_listener
from ramify.metrics import metrics_server, tell_certificate
from ramify.process import stop_event, write_ready_file
from ramify.store.database import EXAMPLES, Database
from ramify.store.errors import CannotOpen
from ramify.store.location import VARIABLE, store_url
from ramify.tls import TlsError, server_tls

log = logging.getLogger("ramify.gateway")

DRAIN_S = 2.0
EXIT_STARTUP = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 0 after a stop, 2 if it cannot start."""
    options = _parser().parse_args(arguments)
    logs.configure(options.log_format, options.log_level)
    try:
        with tracing.configured("ramify-gateway"):
            asyncio.run(_serve(options))
    except (CannotListen, CannotOpen, TlsError, tracing.TracingError, OSError) as error:
        print(f"ramify.gateway: {error}", file=sys.stderr)
        return EXIT_STARTUP
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ramify.gateway", description="The gRPC job API over a store.")
    parser.add_argument("--store", metavar="URL", help=f"e.g. {EXAMPLES}; without it {VARIABLE}")
    parser.add_argument("--store-file", type=Path, metavar="FILE", help="a file that holds the store's URL, in place of --store")
    parser.add_argument(
        "--no-migrate", action="store_true", help="leave the tables as they are: `ramify migrate` has seen to them"
    )
    parser.add_argument("--listen", default="127.0.0.1:8700", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate to show, PEM; renewed when the file changes")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    parser.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="let in only clients of these authorities (mTLS)")
    parser.add_argument("--keys", action="store_true", help="let in only callers with an API key; see `ramify keys`")
    parser.add_argument("--health", metavar="HOST:PORT", help="answer health checks here too, without TLS, and nothing else")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here, at /metrics")
    parser.add_argument(
        "--drain-s", type=float, default=DRAIN_S, help=f"for open calls, once it is to stop (default {DRAIN_S:g})"
    )
    parser.add_argument("--ready-file", type=Path, help="written once it serves: its address and pid, as JSON")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--log-level", default="", choices=logs.LEVELS, help=f"else {logs.LEVEL_VARIABLE}, or INFO")
    parser.add_argument("--log-format", default="", choices=logs.FORMATS, help=f"else {logs.FORMAT_VARIABLE}, or text")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    stop = stop_event(options.exit_with_stdin)
    url = store_url(options.store, options.store_file)
    if url is None:
        raise CannotOpen(f"say where the store is: --store URL, --store-file FILE or {VARIABLE}; a URL is like {EXAMPLES}")
    tls = server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
    if options.keys and tls is None:
        log.warning("API keys come without TLS here: whoever is on the way can read them; see --tls-cert and --tls-key")
    registry = CollectorRegistry()
    async with contextlib.AsyncExitStack() as ends:
        if tls is not None:
            tell_certificate(tls.certificate, registry)
        if options.metrics:
            ends.enter_context(metrics_server(options.metrics, registry))
        database = Database(url)
        ends.push_async_callback(database.close)
        await (database.check() if options.no_migrate else database.migrate())
        gateway = Gateway(database, tls=tls, keys=options.keys, registry=registry)
        if options.health:  # ends after the gateway: it is to tell that nobody serves any more
            log.info("health is at %s", await ends.enter_async_context(health_listener(options.health, gateway.health)))
        address = f"{options.listen.rpartition(':')[0]}:{await gateway.start(options.listen)}"
        ends.push_async_callback(gateway.stop, options.drain_s)
        gc.collect()
        gc.freeze()  # what a start leaves, half a million objects, stays to the end: no collection need look at it
        if options.ready_file:
            write_ready_file(options.ready_file, address)
        log.info("serving on %s", address)
        await stop.wait()
        log.info("stopping")


if __name__ == "__main__":
    sys.exit(main())
