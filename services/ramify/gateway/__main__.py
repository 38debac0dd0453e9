"""`python -m ramify.gateway`: the gateway as a process of its own."""

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from ramify.gateway.errors import CannotListen
from ramify.gateway.server import Gateway
from ramify.metrics import metrics_server
from ramify.process import stop_event, write_ready_file
from ramify.store.database import EXAMPLES, Database
from ramify.store.errors import CannotOpen

log = logging.getLogger("ramify.gateway")

GRACE_S = 2.0
EXIT_STARTUP = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 0 after a stop, 2 if it cannot start."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(options))
    except (CannotListen, CannotOpen, OSError) as error:
        print(f"ramify.gateway: {error}", file=sys.stderr)
        return EXIT_STARTUP
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ramify.gateway", description="The gRPC job API over a store.")
    parser.add_argument("--store", required=True, metavar="URL", help=f"e.g. {EXAMPLES}")
    parser.add_argument("--listen", default="127.0.0.1:8700", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here, at /metrics")
    parser.add_argument("--ready-file", type=Path, help="written once it serves: its address and pid, as JSON")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


async def _serve(options: argparse.Namespace) -> None:
    stop = stop_event(options.exit_with_stdin)
    registry = CollectorRegistry()
    database = Database(options.store)
    with contextlib.ExitStack() as ends:
        if options.metrics:
            ends.enter_context(metrics_server(options.metrics, registry))
        await _serve_store(database, registry, options, stop)


async def _serve_store(database: Database, registry: CollectorRegistry, options: argparse.Namespace, stop: asyncio.Event) -> None:
    try:
        await database.migrate()
        gateway = Gateway(database, registry=registry)
        address = f"{options.listen.rpartition(':')[0]}:{await gateway.start(options.listen)}"
        try:
            if options.ready_file:
                write_ready_file(options.ready_file, address)
            log.info("serving on %s", address)
            await stop.wait()
            log.info("stopping")
        finally:
            await gateway.stop(GRACE_S)
    finally:
        await database.close()


if __name__ == "__main__":
    sys.exit(main())
