"""The commands: `serve` passes on to the verifier's own, `score` reads what is asked for."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Literal

import typer

from ramify.cli.errors import CliError, UsageError
from ramify.cli.submit import INTERRUPTED, unescaped

Aggregate = Literal["last", "min", "mean", "prod"]


def serve(context: typer.Context) -> None:
    """Serve reward models and rules over gRPC, until Ctrl-C."""
    from ramify.verifier.__main__ import main

    try:
        code = main(context.args, context.command_path)
    except SystemExit as ended:  # of argparse: help, or a wrong option
        code = ended.code if isinstance(ended.code, int) else 0
    raise typer.Exit(code)


def score(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSONL with problem, and steps or solution, and maybe reference; - is stdin.")
    ],
    model: Annotated[
        str, typer.Option(metavar="[NAME=]FOLDER", help="A reward model, loaded here; with options as in FOLDER?backend=vllm.")
    ] = "",
    rule: Annotated[str, typer.Option(metavar="NAME", help="A rule: countdown, math, or one of your own.")] = "",
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="A verifier that runs; several with commas between.")] = "",
    name: Annotated[str, typer.Option(metavar="MODEL", help="Which of its models.", show_default="its first")] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Reach it with TLS.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="The authority of its certificate, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="A certificate to show it, PEM (mTLS).")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The key of that.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="For a model on the CPU.", show_default="one a core")] = 0,
    delimiter: Annotated[
        str, typer.Option(metavar="TEXT", help=r"Ends a step of a solution, such as \n; empty: a solution is one step.")
    ] = r"\n\n",
    aggregate: Annotated[Aggregate, typer.Option(help="What the scores of the steps come to.")] = "last",
    best: Annotated[bool, typer.Option("--best", help="Only the solution of each problem that scores highest.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there.", show_default="stdout")
    ] = None,
) -> None:
    """Score the solutions in a file.

    Each line comes back with the scores of its steps and what they come to, or with an error and what is wrong, in the order of
    the file. Exit code 1 if any line has an error.
    """
    from ramify.cli.verifier.desk import Desk, Opening, here, there
    from ramify.cli.verifier.interrupts import Interrupts
    from ramify.cli.verifier.scoring import Scoring
    from ramify.tls import ClientTls, TlsError
    from ramify.verifier.errors import StartupError, UnknownModelError, VerifierError

    _check_source({"--model": model, "--rule": rule, "--address": address})
    if not address and (name or tls or tls_ca or tls_cert or tls_key):
        raise UsageError("--name and --tls are about a verifier that runs: say which with --address")
    try:
        if address:
            wanted = bool(tls or tls_ca or tls_cert or tls_key)
            opening: Opening = there(address, name, ClientTls(tls_ca, tls_cert, tls_key) if wanted else None)
        else:
            opening = here(model, rule, threads or len(os.sched_getaffinity(0)))
        with _input(file) as lines, Interrupts() as interrupts, Desk(opening) as desk, _output(output, file) as out:
            scoring = Scoring(desk, unescaped(delimiter), aggregate, best=best)
            finished = scoring.run(lines, out, interrupts)
    except (StartupError, UnknownModelError, TlsError) as error:
        raise UsageError(str(error)) from error
    except VerifierError as error:
        raise CliError(str(error)) from error
    except KeyboardInterrupt:  # before the first line
        raise typer.Exit(INTERRUPTED) from None
    if finished and not scoring.tally.lines:
        raise UsageError(f"{'standard input' if file == '-' else file} is empty; each line is one solution")
    scoring.tally.show(finished=finished)
    raise typer.Exit(INTERRUPTED if not finished else 1 if scoring.tally.errors else 0)


def _check_source(options: dict[str, str]) -> None:
    given = [option for option, value in options.items() if value]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given" if given else "nothing says what is to score them"
        raise UsageError(f"{what}: give one of {', '.join(options)}")


@contextlib.contextmanager
def _input(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        lines = open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    with lines:
        yield lines


@contextlib.contextmanager
def _output(output: Path | None, file: str) -> Iterator[IO[bytes]]:
    if output is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    if file != "-" and output.exists() and output.samefile(file):
        raise UsageError(f"--output {output} is the file that is read; write to another")
    try:
        out = output.open("wb")
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from error
    with out:
        yield out
