"""`ramify tenants`: who shares the system, and what each may have."""

import sys
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from ramify.cli.at_store import HOME, HomeOption, JsonOption, StoreFileOption, StoreOption, at_store, operator
from ramify.cli.errors import UsageError
from ramify.cli.output import make_console, print_json
from ramify.cli.tables import table
from ramify.store.database import Database
from ramify.store.tenants import Standing, Tenant, Tenants

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the tenant.")]
NONE = 0  # that lifts a bound

app = typer.Typer(
    help="Tenants: set what one may have, list them with what they have spent today, remove.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("set")
def set_tenant(
    name: NameArgument,
    weight: Annotated[
        float | None,
        typer.Option(min=0.001, max=1000, metavar="NUMBER", help="Its share as against the others'.", show_default="1"),
    ] = None,
    jobs_max: Annotated[int | None, typer.Option(min=0, metavar="JOBS", help="Jobs that are open at once.")] = None,
    live_chains_max: Annotated[int | None, typer.Option(min=0, metavar="CHAINS", help="Chains that live at once.")] = None,
    tokens_per_day_max: Annotated[
        int | None, typer.Option(min=0, metavar="TOKENS", help="Tokens of a day, which begins at midnight UTC.")
    ] = None,
    store: StoreOption = None,
    store_file: StoreFileOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Set what a tenant may have; what isn't named stays as it is, and 0 lifts a bound."""
    given = {
        "weight": weight,
        "jobs_max": jobs_max,
        "live_chains_max": live_chains_max,
        "tokens_per_day_max": tokens_per_day_max,
    }
    changes: dict[str, Any] = {field: None if value == NONE else value for field, value in given.items() if value is not None}
    by = operator()

    async def change(database: Database) -> Standing:
        tenants = Tenants(database)
        await tenants.put(replace(await tenants.get(name) or Tenant(name), **changes), by)
        return (await tenants.standings())[name]

    _show([at_store(store, store_file, home, change)], as_json=as_json)


@app.command("list")
def list_tenants(
    store: StoreOption = None, store_file: StoreFileOption = None, home: HomeOption = HOME, as_json: JsonOption = False
) -> None:
    """List tenants of which something is said or that have spent something today. Any other has weight 1 and no bounds."""
    _show([*at_store(store, store_file, home, lambda database: Tenants(database).standings()).values()], as_json=as_json)


@app.command("remove")
def remove(
    name: NameArgument,
    store: StoreOption = None,
    store_file: StoreFileOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Have a tenant be as any other, with weight 1 and no bounds. Its jobs and keys stay."""
    by = operator()
    if not at_store(store, store_file, home, lambda database: Tenants(database).remove(name, by)):
        raise UsageError(f"nothing is said of tenant {name!r:.100}; `ramify tenants list` lists those of which something is")
    if as_json:
        print_json({"name": name, "removed": True})
        return
    print(f"tenant {name} has weight 1 and no bounds", file=sys.stderr)


def _show(standings: list[Standing], *, as_json: bool) -> None:
    if as_json:
        for standing in standings:
            spent = {"steps_today": standing.steps_today, "tokens_today": standing.tokens_today}
            print_json({**asdict(standing.tenant), **spent, "tokens_left": standing.tokens_left})
        return
    if not standings:
        print("no tenants; `ramify tenants set NAME` sets what one may have", file=sys.stderr)
        return
    shown = table("tenant", "weight>", "jobs>", "live chains>", "tokens a day>", "spent today>", "steps today>")
    for standing in standings:
        its = standing.tenant
        bounds = ["any" if most is None else f"{most:,}" for most in (its.jobs_max, its.live_chains_max, its.tokens_per_day_max)]
        shown.add_row(its.name, f"{its.weight:g}", *bounds, f"{standing.tokens_today:,}", f"{standing.steps_today:,}")
    make_console().print(shown)
