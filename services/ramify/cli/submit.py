"""What `ramify submit` does."""

import re
import signal
import sys
import uuid
from collections.abc import Mapping

import typer

from ramify.cli.errors import UsageError
from ramify.cli.output import counted, make_console, print_json
from ramify.cli.problems import ProblemFile
from ramify.cli.records import as_record
from ramify.cli.settings import load_settings
from ramify.cli.watch import follow, follow_as_json, summary
from ramify.client import Client, Unavailable, job_spec
from ramify.client.peers import said, translate
from ramify.client.spec import SEARCH_KNOBS, unknown_knob
from ramify.v1 import job_pb2

INTERRUPTED = 128 + signal.SIGINT
ALL_FAILED = 1

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def make_spec(knobs: list[str], options: Mapping[str, object], peer: str | None = None) -> job_pb2.JobSpec:
    r"""A spec from `KNOB=VALUE` arguments and options; in `step` and `step_prompt`, `\n`, `\t` and `\\` mean what they do in C.

    With a `peer`, the knobs are those of another system; what they are here is said on stderr.

    Raises:
        UsageError: an argument is malformed, or a knob is given twice.
        InvalidRequest: a knob is unknown, or its value isn't one that it can have.
    """
    ours = given = _parsed(knobs)
    if peer is not None:
        if "policy" in options:
            raise UsageError(f"the knobs are those of {peer}, and so is the algorithm: leave --policy out")
        ours = translate(peer, given)
        print(said(peer, given, ours), file=sys.stderr)
    for name, value in ours.items():
        if name not in SEARCH_KNOBS:
            raise unknown_knob(name, list(SEARCH_KNOBS))
        if name in options:
            raise UsageError(f"{name} is given twice: {options[name]} and {value}")
    if "step" in ours:
        ours["step"] = unescaped(ours["step"])
    if isinstance(begins := options.get("step_prompt"), str):
        options = {**options, "step_prompt": unescaped(begins)}
    return job_spec(**options, **ours)


def generators(given: list[str]) -> dict[str, object]:
    """The options for the models that write the steps, each MODEL or MODEL=WEIGHT. Raises `UsageError`."""
    weights: dict[str, float] = {}
    for each in given:
        name, weight = _weighted(each)
        if name in weights:
            raise UsageError(f"--generator {name} is given twice: add up its weights")
        weights[name] = weight
    return {"generator": given[0]} if given == [*weights] and len(given) == 1 else {"generators": weights} if given else {}


def verifiers(given: list[str]) -> dict[str, object]:
    """The options for the models that score the steps, each MODEL[=WEIGHT][,NAME=VALUE]... Raises `UsageError`."""
    said = [_verifier(each) for each in given]
    if [[*each] for each in said] == [["model"]]:
        return {"verifier": given[0]}
    return {"verifiers": said} if said else {}


def _verifier(text: str) -> dict[str, object]:
    head, *settings = text.split(",")
    name, weight = _weighted(head)
    found: dict[str, object] = {"model": name}
    if name != head:
        found["weight"] = weight
    for each in settings:
        key, equals, value = each.partition("=")
        if not equals or key in found:
            raise UsageError(
                f"--verifier {text}: after the model come temperature=T and when=always|way|end, once each, not {each!r}"
            )
        found[key] = value
    return found


def _weighted(text: str) -> tuple[str, float]:
    """A model and its weight; a name may hold `=` too."""
    name, equals, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if equals else (text, 1.0)
    except ValueError:
        return text, 1.0


def submit(
    client: Client, problems: ProblemFile, spec: job_pb2.JobSpec, *, request_id: str | None, watch: bool, as_json: bool
) -> None:
    """Checks the problems, sends them, says which job they became, and watches it if asked to."""
    console = make_console()
    with problems:
        count = problems.check()
        job = _send(client, problems, count, spec, request_id or str(uuid.uuid4()))
    if as_json:
        print_json(as_record(job))
    elif not console.is_terminal and not watch:
        console.print(job.job_id)  # alone, for scripts
    else:
        console.print(f"job {job.job_id}: {counted(count, 'problem')}")
    if watch:
        watch_job(client, job.job_id, as_json=as_json)


def watch_job(client: Client, job_id: str, *, as_json: bool) -> None:
    """Follows a job to its end, or until Ctrl-C, which leaves it running and says so.

    Raises:
        typer.Exit: with 1 if it is done and every problem has failed.
    """
    try:
        if as_json:
            follow_as_json(client, job_id)
            job = client.job(job_id)
        else:
            console = make_console()
            job = follow(client, job_id, console)
            console.print(summary(job))
            if job.progress.problems_failed:
                print(f"`ramify results {job_id}{_elsewhere(client)}` says why problems failed", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\njob {job_id} goes on; see it again with `ramify watch {job_id}{_elsewhere(client)}`", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if job.state == job_pb2.JOB_STATE_DONE and job.progress.problems_failed == job.progress.problems_total > 0:
        raise typer.Exit(ALL_FAILED)


def _elsewhere(client: Client) -> str:
    """What a command needs to reach the same gateway."""
    return "" if client.address == load_settings().address else f" --address {client.address}"


def _send(client: Client, problems: ProblemFile, count: int, spec: job_pb2.JobSpec, request_id: str) -> job_pb2.Job:
    again = f"the upload is not complete; the same command with --request-id {request_id} takes it up again"
    console = make_console(stderr=True)
    with console.status("sending problems") as status:
        received = 0

        def acknowledged(problems: int) -> None:
            nonlocal received
            received = problems
            status.update(f"sending problems: {received:,} of {count:,}")

        try:
            return client.submit(problems, spec, request_id=request_id, acknowledged=acknowledged)
        except Unavailable as error:
            raise Unavailable(f"{error}\n{again}" if received else str(error)) from error
        except KeyboardInterrupt:
            status.stop()
            print(f"\n{again}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


def _parsed(knobs: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for knob in knobs:
        name, equals, value = knob.partition("=")
        if not equals:
            raise UsageError(f"a knob is KNOB=VALUE, such as n=16, not {knob!r}")
        if name in given:
            raise UsageError(f"{name} is given twice: {given[name]} and {value}")
        given[name] = value
    return given


def unescaped(text: str) -> str:
    r"""The text of an option in which `\n`, `\t` and `\\` mean what they do in C."""
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)
