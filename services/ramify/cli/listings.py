"""What `ramify jobs`, `results`, `tree` and `cancel` do."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from google.protobuf.message import Message

from ramify.cli.errors import UsageError
from ramify.cli.export import check_output, write_results
from ramify.cli.output import counted, make_console, print_json
from ramify.cli.records import as_record
from ramify.cli.tables import job_tables, result_tables
from ramify.cli.tree import render_tree
from ramify.cli.trouble import wait_lines
from ramify.cli.watch import summary
from ramify.client import Client
from ramify.client.spec import word
from ramify.v1 import job_pb2


def show_jobs(client: Client, *, state: str | None, limit: int | None, as_json: bool) -> None:
    """The newest jobs as a table or as JSON lines."""
    states = {word(job_pb2.JobState.DESCRIPTOR, number): number for number in job_pb2.JobState.values() if number}
    if state is not None and state not in states:
        raise UsageError(f"--state is one of {', '.join(states)}, not {state!r}")
    jobs = islice(client.jobs(states[state] if state else None), limit)
    if as_json:
        _print_all(jobs)
        return
    console = make_console()
    shown = 0
    for table in job_tables(jobs, datetime.now(UTC)):
        console.print(table)
        shown += table.row_count
    if not shown:
        _note("no jobs" if state is None else f"no job is {state}")
    elif shown == limit:
        _note(f"the newest {limit}; --limit shows more")


def show_results(client: Client, job_id: str, *, output: Path | None, as_json: bool) -> None:
    """The results of a job as a table, as JSON lines or in a file."""
    if output is not None:
        check_output(output)
        count = write_results(output, client.results(job_id))
        _note(f"{output}: {counted(count, 'result')}")
    elif as_json:
        _print_all(client.results(job_id))
    else:
        console = make_console()
        for table in result_tables(client.results(job_id)):
            console.print(table)
    job = client.job(job_id)
    if job.finish_time.seconds:
        if output is None and not as_json:
            _note(summary(job).plain)
    else:
        done, total = job.progress.problems_done, job.progress.problems_total
        state = word(job_pb2.JobState.DESCRIPTOR, job.state)
        _note(f"job {job_id} is {state}: {done:,} of {total:,} problems have a result")
        for line in wait_lines(job.waits, datetime.now(UTC)):
            _note(f"waits: {line}")


def show_tree(client: Client, job_id: str, problem: str, *, show_all: bool, as_json: bool) -> None:
    """The tree of one problem, named by its index or its id."""
    is_index = problem.isdecimal() and int(problem) < 1 << 64
    tree = client.tree(job_id, int(problem) if is_index else _index_of(client, job_id, problem))
    if as_json:
        print_json(as_record(tree))
    else:
        make_console().print(render_tree(tree, show_all=show_all))


def cancel_job(client: Client, job_id: str, *, as_json: bool) -> None:
    """Ends a job and says how far it was."""
    job = client.cancel(job_id)
    if as_json:
        print_json(as_record(job))
    else:
        make_console().print(summary(job))


def _index_of(client: Client, job_id: str, problem_id: str) -> int:
    # Only results tell which problem has an id.
    for result in client.results(job_id):
        if result.problem.id == problem_id:
            return result.problem_index
    raise UsageError(f"no result of job {job_id} has the problem id {problem_id!r}; name a problem without a result by its index")


def _print_all(messages: Iterable[Message]) -> None:
    for message in messages:
        print_json(as_record(message))


def _note(text: str) -> None:
    """For people beside the data: a pipe doesn't get it."""
    print(text, file=sys.stderr)
