"""The `ramify` command. What a command needs beyond this is imported when it runs, so that `--help` is quick."""

import importlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ramify.client import Client

app = typer.Typer(
    help="Grow search trees of reasoning steps: submit problems, watch them, fetch answers and trees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Where the gateway is; else RAMIFY_ADDRESS, else 127.0.0.1:8700."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]

#: Arguments go on to the real command unread.
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": list[str]()}


@app.callback()
def _root(context: typer.Context, address: AddressOption = None) -> None:
    context.obj = address


@app.command("submit")
def submit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Problems: .jsonl, .csv, .parquet or .txt; - is JSONL on stdin.")],
    knobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="KNOB=VALUE", help="How to search, such as n=16 keep=4."),
    ] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="The algorithm; see above.  [default: beam]")] = None,
    knobs_from: Annotated[
        str | None,
        typer.Option(metavar="PEER", help="The knobs are those of another system, such as search-and-learn; see docs/knobs.md."),
    ] = None,
    generator: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL[=WEIGHT]", help="The model that writes the steps; several, by their weights."),
    ] = None,
    verifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL[=WEIGHT][,temperature=T][,when=always|way|end]",
            help="The reward model that scores them; several, by their weights; see docs/verifier.md.",
        ),
    ] = None,
    checker: Annotated[str | None, typer.Option(metavar="NAME", help="The rule that checks the answers.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before the problem.")] = None,
    prompt_template: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the problem's text is put into, at {problem}; see docs/prompts.md.")
    ] = None,
    chat: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Use the model's chat template: auto, always, never.  [default: auto]")
    ] = None,
    step_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What every step begins with, such as '## Step {step}: '.")
    ] = None,
    thoughts_end: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answers are looked for after it.  [default: </think>]")
    ] = None,
    region: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Sample there alone; repeatable.")] = None,
    price_weight: Annotated[float | None, typer.Option(min=0, help="Of a region's price; see docs/regions.md.")] = None,
    delay_weight: Annotated[float | None, typer.Option(min=0, help="Of a millisecond of its round trip.")] = None,
    carbon_weight: Annotated[float | None, typer.Option(min=0, help="Of a gram of CO2 per kWh of its electricity.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="INTEGER", help="The same seed grows the same trees.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="Tokens of the whole job.")] = None,
    budget_tokens_per_problem: Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="Tokens of one problem.")] = None,
    budget_steps: Annotated[int | None, typer.Option(min=1, metavar="STEPS", help="Steps of the whole job.")] = None,
    budget_steps_per_problem: Annotated[int | None, typer.Option(min=1, metavar="STEPS", help="Steps of one problem.")] = None,
    budget_seconds: Annotated[int | None, typer.Option(min=1, metavar="SECONDS", help="Seconds of the whole job.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, metavar="NUMBER", help="Among your tenant's jobs: the higher one goes first.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="A name for people.")] = None,
    request_id: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Name of the request; repeated, it makes no new job.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET=NAME", help="Where in the file text, id and reference are: text=puzzle."),
    ] = None,
    file_format: Annotated[str | None, typer.Option("--format", metavar="FORMAT", help="jsonl, csv, parquet or txt.")] = None,
    watch: Annotated[
        bool | None, typer.Option("--watch/--no-watch", help="Stay to watch; default in a terminal. Exit code as of watch.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Submit a file of problems as a job.

    The policies: beam, best_of_n, dvts, lookahead, rebase, particle, self_consistency, revise, mcts, ab_mcts, best_first.
    Each has some of the knobs: n, keep, branch, iterations, parallel, max_steps, max_step_tokens, temperature, top_p,
    step=answer|TOKENS|DELIMITER, finished=compete|retire|refill, cut=discard|answer, aggregate=last|min|mean|prod,
    answer=best|vote|weighted_vote, extract=last_line|boxed|pattern, pattern, compare=exact|number|math, tolerance,
    duplicates=drop|keep, siblings=spread|independent, threshold, stop=never|beta|margin, confidence, margin, lookahead,
    balance, exploration, resample=systematic|multinomial, ess, belief=gaussian|beta, barrier=level|none, speculate.
    """
    from ramify.cli import submit as submission
    from ramify.cli.problems import ProblemFile, parse_fields

    options: dict[str, object] = {
        "policy": policy,
        **submission.generators(generator or []),
        **submission.verifiers(verifier or []),
        "checker": checker,
        "system": system,
        "prompt_template": prompt_template,
        "chat": chat,
        "step_prompt": step_prompt,
        "thoughts_end": thoughts_end,
        "regions": region,
        "price_weight": price_weight,
        "delay_weight": delay_weight,
        "carbon_weight": carbon_weight,
        "seed": seed,
        "tokens_max": budget_tokens,
        "tokens_per_problem_max": budget_tokens_per_problem,
        "steps_max": budget_steps,
        "steps_per_problem_max": budget_steps_per_problem,
        "seconds_max": budget_seconds,
        "priority": priority,
        "name": name,
    }
    spec = submission.make_spec(knobs or [], {key: value for key, value in options.items() if value is not None}, knobs_from)
    problems = ProblemFile(file, file_format=file_format, fields=parse_fields(field or []))
    with _connect(context, address) as client:
        submission.submit(
            client,
            problems,
            spec,
            request_id=request_id,
            watch=sys.stdout.isatty() if watch is None else watch,
            as_json=as_json,
        )


@app.command("jobs")
def jobs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only those: uploading, running, done, cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="COUNT", help="The newest so many; 0 means all.")] = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """List jobs, the newest first."""
    from ramify.cli import listings

    with _connect(context, address) as client:
        listings.show_jobs(client, state=state, limit=limit or None, as_json=as_json)


@app.command("watch")
def watch(context: typer.Context, job: JobArgument, as_json: JsonOption = False, address: AddressOption = None) -> None:
    """Follow a job until it ends. Exit code 1 if it is done and every problem has failed."""
    from ramify.cli.submit import watch_job

    with _connect(context, address) as client:
        watch_job(client, job, as_json=as_json)


@app.command("results")
def results(
    context: typer.Context,
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write them to this .jsonl, .csv or .parquet file.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Fetch the answers of a job, finished or not."""
    from ramify.cli import listings

    with _connect(context, address) as client:
        listings.show_results(client, job, output=output, as_json=as_json)


@app.command("tree")
def tree(
    context: typer.Context,
    job: JobArgument,
    problem: Annotated[str, typer.Argument(metavar="PROBLEM", help="Index of the problem, from 0, or its id.")],
    show_all: Annotated[bool, typer.Option("--all", help="Every step, in full.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Show the search tree of one problem."""
    from ramify.cli import listings

    with _connect(context, address) as client:
        listings.show_tree(client, job, problem, show_all=show_all, as_json=as_json)


@app.command("cancel")
def cancel(context: typer.Context, job: JobArgument, as_json: JsonOption = False, address: AddressOption = None) -> None:
    """End a job early; the results that are there stay."""
    from ramify.cli import listings

    with _connect(context, address) as client:
        listings.cancel_job(client, job, as_json=as_json)


@app.command("doctor")
def doctor(
    context: typer.Context,
    home: Annotated[
        Path | None, typer.Option(envvar="RAMIFY_HOME", help="Folder of a local system.", show_default="~/.ramify")
    ] = None,
    store: Annotated[str | None, typer.Option(metavar="URL", help="A store, in place of that of the folder.")] = None,
    store_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that holds a store's URL, in place of --store.")
    ] = None,
    verifier: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where a verifier is.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read all that is stored, however long it takes.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Say what is wrong with a store and a running system, why it matters, and what to do.

    Looks at the local system and its store, or at what is named. Exit code 1 if anything is wrong.
    """
    from ramify.cli.doctor import command

    named = command.store_named(store, store_file)
    command.run(command.patient(home, named, address or context.obj, verifier, deep=deep), as_json=as_json)


# The commands that live in modules of their own, imported when they run.


@app.command("up", context_settings=_PASS_ON, add_help_option=False)
def up(context: typer.Context) -> None:
    """Start a whole Ramify on this machine."""
    _pass_on(context, "ramify.cli.local", "up")


@app.command("demo", context_settings=_PASS_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """See it work: puzzles, a tiny model, and the trees it grows."""
    _pass_on(context, "ramify.cli.local", "demo")


@app.command("migrate", context_settings=_PASS_ON, add_help_option=False)
def migrate(context: typer.Context) -> None:
    """Bring a store's tables up to date."""
    _pass_on(context, "ramify.cli.migrate", "migrate")


@app.command("keys", context_settings=_PASS_ON, add_help_option=False)
def keys(context: typer.Context) -> None:
    """API keys: create, list, revoke."""
    _pass_on(context, "ramify.cli.keys", "app")


@app.command("tenants", context_settings=_PASS_ON, add_help_option=False)
def tenants(context: typer.Context) -> None:
    """Who shares the system, and what each may have."""
    _pass_on(context, "ramify.cli.tenants", "app")


@app.command("audit", context_settings=_PASS_ON, add_help_option=False)
def audit(context: typer.Context) -> None:
    """Who has done what."""
    _pass_on(context, "ramify.cli.audit", "audit")


@app.command("verifier", context_settings=_PASS_ON, add_help_option=False)
def verifier(context: typer.Context) -> None:
    """The verifier alone: serve it, or score a file of solutions."""
    _pass_on(context, "ramify.cli.verifier", "app")


@app.command("bench", context_settings=_PASS_ON, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure this machine."""
    _pass_on(context, "ramify.cli.bench", "app")


def _pass_on(context: typer.Context, module: str, attribute: str) -> None:
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        command.command()(target)
        target = command
    code: Any = target(args=context.args, prog_name=context.command_path, standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def _connect(context: typer.Context, address: str | None) -> "Client":
    from ramify.client import Client
    from ramify.client.settings import from_environment

    return Client(**from_environment(address or context.obj))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code: 2 where the user can mend it, 130 on Ctrl-C, else 0 or 1."""
    try:
        result: Any = app(args=arguments, prog_name="ramify", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        # Whoever read our output has seen enough; typer ends so too where it notices first. What is still buffered
        # must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("RAMIFY_DEBUG", "") not in ("", "0"):
            raise
        from ramify.cli.failures import explain

        message, code = explain(error)
        print(message, file=sys.stderr)
        return code


def main() -> None:
    """Entry point of the `ramify` command."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a lost connection is told by us, not by gRPC's own log
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no block characters shows what it can
    code = run(sys.argv[1:])
    if "ray" in sys.modules:
        # All is stopped by now, but the interpreter's own end sometimes crashes in Ray's native threads.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
