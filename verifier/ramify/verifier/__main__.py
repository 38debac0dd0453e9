"""`python -m ramify.verifier`: the verifier as a process of its own."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ramify.process import stop_event, write_ready_file
from ramify.verifier.backends.base import Scorer
from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.batching import QUEUE_CHAINS_MAX
from ramify.verifier.errors import StartupError
from ramify.verifier.rules import RULES
from ramify.verifier.server import VerifierServer

logger = logging.getLogger("ramify.verifier")

EXIT_STARTUP = 2
MODEL_HELP = "a process reward model in ONNX form; NAME=simulated?base_ms=2&token_us=5 is one that only hashes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code: 0 after a stop, 2 if it cannot start."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(options))
    except StartupError as error:
        print(f"ramify.verifier: {error}", file=sys.stderr)
        return EXIT_STARTUP
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ramify.verifier", description="Scores chains of reasoning steps.")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help=MODEL_HELP)
    parser.add_argument("--rule", action="append", default=[], metavar="NAME", help=f"one of: {', '.join(RULES)}")
    parser.add_argument("--listen", default="127.0.0.1:50061", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each ONNX model (default 1)")
    parser.add_argument("--queue-chains-max", type=int, default=QUEUE_CHAINS_MAX, help="chains of one model that may wait")
    parser.add_argument("--ready-file", type=Path, help="written once it serves: its address and pid, as JSON")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


async def _serve(options: argparse.Namespace) -> None:
    stop = stop_event(options.exit_with_stdin)
    server = VerifierServer(options.queue_chains_max)
    address = await server.start(options.listen)
    try:
        scorers = await asyncio.to_thread(load_scorers, options.model, options.rule, options.threads)
        await server.serve(scorers)
        if options.ready_file:
            write_ready_file(options.ready_file, address)
        logger.info("serving %s on %s", ", ".join(scorer.name for scorer in scorers), address)
        await stop.wait()
        logger.info("stopping")
    finally:
        await server.stop()


def load_scorers(models: Sequence[str], rules: Sequence[str], threads: int) -> list[Scorer]:
    """Loads models ("NAME=FOLDER" or "NAME=simulated?OPTION=VALUE&...") and rules, in that order.

    Raises:
        StartupError: one cannot be loaded, two have one name, or there are none.
    """
    scorers: list[Scorer] = []
    for model in models:
        name, equals, folder = model.partition("=")
        if not (name and equals and folder):
            raise StartupError(f"--model '{model}' is not NAME=FOLDER")
        scorers.append(load_model(name, folder, threads))
    for rule in rules:
        if rule not in RULES:
            raise StartupError(f"no rule '{rule}'; there is {', '.join(RULES)}")
        scorers.append(RuleScorer(RULES[rule]))
    names = [scorer.name for scorer in scorers]
    if not names:
        raise StartupError("nothing to serve: give --model NAME=FOLDER or --rule NAME")
    if len(set(names)) < len(names):
        raise StartupError(f"two models have one name: {', '.join(names)}")
    return scorers


def load_model(name: str, folder: str, threads: int) -> Scorer:
    """Loads the model in a folder, or the simulated one if it is called so; a real folder of that name is `./simulated`.

    Raises:
        StartupError: it cannot be loaded.
    """
    if folder.partition("?")[0] == "simulated":
        from ramify.verifier.backends.simulated import load_simulated

        return load_simulated(name, folder)
    # Only here: rules alone need no ONNX Runtime, which takes a second and 60 MB.
    from ramify.verifier.backends.onnx import OnnxScorer

    return OnnxScorer(name, Path(folder), threads=threads)


if __name__ == "__main__":
    sys.exit(main())
