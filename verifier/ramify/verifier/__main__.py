"""`python -m ramify.verifier`: the verifier as a process of its own."""

import argparse
import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from ramify import logs, tracing
from ramify.health import health_listener
from ramify.metrics import metrics_server, tell_certificate
from ramify.process import stop_event, write_ready_file
from ramify.tls import TlsError, server_tls
from ramify.verifier.backends.base import Scorer
from ramify.verifier.batching import QUEUE_CHAINS_MAX
from ramify.verifier.errors import ModelError, StartupError
from ramify.verifier.loading import MODEL_HELP, load_scorers
from ramify.verifier.memory import MEMORY_BYTES_MAX
from ramify.verifier.rules import known_rules
from ramify.verifier.server import DRAIN_S_MAX, Limits, VerifierServer

logger = logging.getLogger("ramify.verifier")

EXIT_FAILED, EXIT_STARTUP = 1, 2


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ramify.verifier") -> int:
    """Runs until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a stop, 1 if a model can score no more, 2 if it cannot start.
    """
    options = _parser(prog).parse_args(arguments)
    logs.configure(options.log_format, options.log_level)
    try:
        with tracing.configured("ramify-verifier"):
            asyncio.run(_serve(options))
    except (StartupError, tracing.TracingError) as error:
        print(f"ramify.verifier: {error}", file=sys.stderr)
        return EXIT_STARTUP
    except ModelError as error:
        print(f"ramify.verifier: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Scores chains of reasoning steps.")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help=MODEL_HELP)
    parser.add_argument("--rule", action="append", default=[], metavar="NAME", help=f"one of: {', '.join(known_rules())}")
    parser.add_argument("--listen", default="127.0.0.1:50061", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each model on the CPU (default 1)")
    parser.add_argument("--queue-chains-max", type=int, default=QUEUE_CHAINS_MAX, help="chains of one model that may wait")
    parser.add_argument("--memory-mib", type=int, default=MEMORY_BYTES_MAX >> 20, help="chains that one model remembers; 0: none")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate to show, PEM; renewed when the file changes")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    parser.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="let in only clients of these authorities (mTLS)")
    parser.add_argument("--health", metavar="HOST:PORT", help="answer health checks here too, without TLS, and nothing else")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here, at /metrics")
    parser.add_argument("--drain-s", type=float, default=DRAIN_S_MAX, help="for open calls, once it is to stop")
    parser.add_argument("--ready-file", type=Path, help="written once it serves: its address and pid, as JSON")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--log-level", default="", choices=logs.LEVELS, help=f"else {logs.LEVEL_VARIABLE}, or INFO")
    parser.add_argument("--log-format", default="", choices=logs.FORMATS, help=f"else {logs.FORMAT_VARIABLE}, or text")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    stop = stop_event(options.exit_with_stdin)
    registry = CollectorRegistry()
    try:
        tls = server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
    except TlsError as error:
        raise StartupError(f"--tls-cert, --tls-key and --tls-client-ca: {error}") from error
    async with contextlib.AsyncExitStack() as ends:
        server = VerifierServer(Limits(options.queue_chains_max, options.memory_mib << 20), tls=tls, registry=registry)
        try:
            if tls is not None:
                tell_certificate(tls.certificate, registry)
            if options.metrics:
                ends.enter_context(metrics_server(options.metrics, registry))
            if options.health:
                logger.info("health is at %s", await ends.enter_async_context(health_listener(options.health, server.health)))
        except OSError as error:
            raise StartupError(str(error)) from error
        address = await server.start(options.listen)
        await _run(server, address, options, stop)


async def _run(server: VerifierServer, address: str, options: argparse.Namespace, stop: asyncio.Event) -> None:
    """Loads the models and serves them until it is to stop."""
    try:
        stopped = asyncio.create_task(stop.wait())
        loading = _in_background(partial(load_scorers, options.model, options.rule, options.threads))
        both: set[asyncio.Future[Any]] = {loading, stopped}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            logger.info("stopping before all models are loaded")
            return
        scorers = loading.result()
        await server.serve(scorers)
        if options.ready_file:
            write_ready_file(options.ready_file, address)
        logger.info("serving %s on %s", ", ".join(scorer.name for scorer in scorers), address)
        failed = asyncio.create_task(server.failed())
        await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():  # whoever keeps it running starts it anew
            raise ModelError(failed.result())
        failed.cancel()
        logger.info("stopping")
    finally:
        await server.stop(options.drain_s)


def _in_background(load: Callable[[], list[Scorer]]) -> asyncio.Future[list[Scorer]]:
    """What a call gives, which may take an hour: in a thread that the process does not wait for when it ends."""
    loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            scorers = load()
        except BaseException as error:  # whatever it is belongs to who waits
            done = partial(found.set_exception, error)
        else:
            done = partial(found.set_result, scorers)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(done)

    threading.Thread(target=run, daemon=True, name="loading").start()
    return found


if __name__ == "__main__":
    sys.exit(main())
