"""`ramify up` and `ramify demo`: a whole system on this machine."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from ramify.cli.errors import CliError, UsageError
from ramify.cli.output import make_console
from ramify.cli.tree import render_tree
from ramify.cli.watch import follow, summary
from ramify.client import Client
from ramify.client.spec import SpecFields
from ramify.local.errors import AlreadyRunning, LocalError, Misconfigured
from ramify.local.models import tiny24
from ramify.local.system import LISTEN, LocalConfig, LocalSystem
from ramify.tls import ClientTls, ServerTls, TlsError, server_tls
from ramify.v1 import job_pb2

LOOK_S = 0.5
HOME = Path.home() / ".ramify"
DEMO = "demo"  # name of the demo's jobs

HomeOption = Annotated[Path, typer.Option(envvar="RAMIFY_HOME", help="Folder for state and logs.", show_default="~/.ramify")]


def up(
    home: HomeOption = HOME,
    listen: Annotated[str, typer.Option(help="HOST:PORT of the gateway; port 0 takes a free one.")] = LISTEN,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Have the gateway speak TLS: its certificate, PEM; see docs/security.md.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Let in only clients of these authorities (mTLS).")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Let in only callers with an API key; see `ramify keys`.")] = False,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx:FOLDER, vllm:MODEL, openai:URL or simulated[:FILE], with options as in 'onnx:FOLDER?slots=32'; repeatable."
        ),
    ] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A TOML file with engines and regions, see docs/regions.md; it is read again when it changes."
        ),
    ] = None,
    ray: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A Ray cluster that runs already; without it, one of this machine alone.")
    ] = "",
    verifier_model: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a PRM; repeatable.")] = None,
    verifier: Annotated[
        str,
        typer.Option(metavar="HOST:PORT,...", envvar="RAMIFY_VERIFIER", help="Verifiers that run already, in place of one here."),
    ] = "",
    verifier_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whom to trust as a verifier: speak TLS with it.")
    ] = None,
    verifier_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate to show to it (mTLS).")] = None,
    verifier_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key.")] = None,
    shards: Annotated[
        int, typer.Option(min=1, max=64, envvar="RAMIFY_SHARDS", help="Scheduler processes, which share the trees.")
    ] = 1,
    lease_s: Annotated[
        float,
        typer.Option(min=1, max=3600, envvar="RAMIFY_LEASE_S", help="Seconds after which others take over from a silent shard."),
    ] = 15.0,
    retain_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            envvar="RAMIFY_RETAIN_DAYS",
            help="Delete jobs that ended longer ago, with all that is theirs.",
            show_default="never",
        ),
    ] = None,
    store: Annotated[str, typer.Option(help="SQLAlchemy URL; without it, SQLite in the home folder.")] = "",
    serve: Annotated[bool, typer.Option("--serve", help="Run as applications of Ray Serve, which the dashboard shows.")] = False,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="OpenAI's chat completions and the trees' pages, on Ray Serve; see docs/http.md."),
    ] = "",
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard.")] = True,
) -> None:
    """Start a whole Ramify on this machine, in the foreground. Ctrl-C stops it; jobs go on with the next `ramify up`."""
    console = make_console()
    models = tuple(verifier_model or ())
    if fleet is not None and engine:
        raise UsageError("--fleet and --engine both say which engines there are: give one of them")
    if verifier and models:
        raise UsageError("--verifier names verifiers that run already, with their models: leave out --verifier-model")
    config = LocalConfig(
        home,
        listen,
        store,
        tuple(engine or ()),
        fleet,
        ray,
        verifier_models=models,
        verifier=verifier,
        verifier_tls=verifier_tls(verifier, verifier_ca, verifier_cert, verifier_key),
        shards=shards,
        dashboard=dashboard,
        lease_s=lease_s,
        retain_days=retain_days,
        tls=gateway_tls(tls_cert, tls_key, tls_client_ca),
        serve=serve,
        http=http,
        keys=keys,
    )
    with running(config, console, stopped=0) as system:
        console.print(Text("ramify is up", "bold"))
        console.print(f"  gateway    {system.address}")
        if http:
            console.print(f"  http       http://{http}/v1")
        token = " (it asks for the token that `ray get-auth-token` prints)" if system.dashboard_url else ""
        console.print(f"  dashboard  {system.dashboard_url or 'off'}{token}")
        console.print(f"  state      {home}")
        for engine_away in system.away:
            console.print(Text(f"  waits for  {engine_away}", "yellow"))
        elsewhere = "" if system.address == LISTEN else f" --address {system.address}"
        console.print(f"Submit with `ramify submit FILE{elsewhere}`; Ctrl-C stops, and jobs go on with the next `ramify up`.")
        quiet = threading.Event()
        while not system.failure:
            quiet.wait(LOOK_S)
        raise CliError(system.failure)


def gateway_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """What the gateway is to show; None: it speaks without TLS."""
    try:
        tls = server_tls(certificate, key, client_ca)
        if tls is not None:
            tls.credentials()  # what can't be read is told before anything starts
    except TlsError as error:
        raise UsageError(f"--tls-cert, --tls-key and --tls-client-ca: {error}") from error
    return tls


def verifier_tls(verifier: str, ca: Path | None, certificate: Path | None, key: Path | None) -> ClientTls | None:
    """How to speak to verifiers; None: without TLS."""
    if not (ca or certificate or key):
        return None
    if not verifier:
        raise UsageError("--verifier-ca, --verifier-cert and --verifier-key are for verifiers that --verifier names")
    try:
        tls = ClientTls(ca, certificate, key)
        tls.credentials()  # what can't be read is told before anything starts
    except TlsError as error:
        raise UsageError(str(error)) from error
    return tls


def demo(
    home: HomeOption = HOME,
    puzzles: Annotated[int, typer.Option(min=1, max=200, help="How many of the 200 held-out puzzles.")] = 50,
) -> None:
    """Solve Game of 24 puzzles with a tiny model, and show one of the trees that it grows."""
    console = make_console()
    config = LocalConfig(home / DEMO, "127.0.0.1:0")
    console.print("starting Ray, a supervisor, a shard, an engine, the verifier and the gateway ...")
    with running(config, console) as system, Client(system.address) as client:
        if system.dashboard_url:
            console.print(f"up: gateway {system.address}, Ray dashboard {system.dashboard_url}")
        job = unfinished(client) or submit_puzzles(client, puzzles)
        console.print(f"job {job.job_id}: {job.progress.problems_total} puzzles that the models have never seen, 16 chains each")
        try:
            job = follow(client, job.job_id, console)
        except KeyboardInterrupt:
            console.print(f"\njob {job.job_id} is kept: the next `make demo` goes on with it")
            raise
        shown = worth_seeing(client, job)
        if shown is not None:
            console.print()
            console.print(render_tree(client.tree(job.job_id, shown)))
            console.print()
        console.print(summary(job))


def unfinished(client: Client) -> job_pb2.Job | None:
    """The job of a demo that was cut short."""
    return next((job for job in client.jobs(state=job_pb2.JOB_STATE_RUNNING) if job.spec.name == DEMO), None)


def submit_puzzles(client: Client, count: int) -> job_pb2.Job:
    """Submit the first held-out puzzles as a beam search."""
    lines = (tiny24() / "heldout.txt").read_text().split("\n")
    # Every fourth or so: the file is sorted, and its beginning would be all ones.
    puzzles = [line for line in lines if line]
    chosen = puzzles[:: max(1, len(puzzles) // count)][:count]
    search: SpecFields = {"policy": "beam", "n": 16, "keep": 8, "aggregate": "prod", "threshold": 0.3}
    search |= {"name": DEMO, "checker": "countdown", "max_steps": 8, "max_step_tokens": 32}
    return client.submit(chosen, **search)


def worth_seeing(client: Client, job: job_pb2.Job) -> int | None:
    """The solved puzzle that took the most steps: its tree has something to show."""
    solved = [result for result in client.results(job.job_id) if result.verdict == job_pb2.VERDICT_CORRECT]
    return max(solved, key=lambda result: result.step_count).problem_index if solved else None


@contextlib.contextmanager
def running(config: LocalConfig, console: Console, stopped: int = 130) -> Iterator[LocalSystem]:
    """A local system; Ctrl-C and SIGTERM stop it in order, with exit code `stopped`; a second one does not cut that short."""
    signal.signal(signal.SIGTERM, _interrupt)
    system = LocalSystem(config)
    try:
        with system:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray has put its own in the place
            yield system
            _ignore_signals()
    except (AlreadyRunning, Misconfigured) as error:
        raise UsageError(str(error)) from error
    except LocalError as error:
        raise CliError(str(error)) from error
    except KeyboardInterrupt:
        console.print("stopped; jobs that were running go on with the next start")
        raise typer.Exit(stopped) from None


def _interrupt(_number: int, _frame: object) -> NoReturn:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
