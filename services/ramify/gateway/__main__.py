"""`python -m ramify.gateway`: the gateway as a process of its own."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from ramify.gateway.server import Gateway
from ramify.process import until_stopped, write_ready_file
from ramify.store.database import Database

log = logging.getLogger("ramify.gateway")

GRACE_S = 2.0


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 after a stop, 2 if the address can't be had."""
    parser = argparse.ArgumentParser(prog="python -m ramify.gateway", description="The gRPC job API over a store.")
    parser.add_argument("--store", required=True, metavar="URL", help="e.g. sqlite+aiosqlite:////var/lib/ramify/state.db")
    parser.add_argument("--listen", default="127.0.0.1:8700", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="written once it serves: its address and pid, as JSON")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> int:
    """Serve until stopped."""
    database = Database(options.store)
    await database.migrate()
    gateway = Gateway(database)
    try:
        port = await gateway.start(options.listen)
    except RuntimeError:
        print(f"ramify.gateway: {options.listen} can't be had; is it taken? Give another one with --listen", file=sys.stderr)
        return 2
    address = f"{options.listen.rsplit(':', 1)[0]}:{port}"
    if options.ready_file:
        write_ready_file(options.ready_file, address)
    log.info("serving on %s", address)
    await until_stopped(options.exit_with_stdin)
    await gateway.stop(GRACE_S)
    await database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
