"""`ramify keys`: who may call the gateway."""

import sys
from typing import Annotated

import typer
from rich.text import Text

from ramify.cli.at_store import HOME, HomeOption, JsonOption, StoreFileOption, StoreOption, at_store, iso, moment, operator
from ramify.cli.errors import UsageError
from ramify.cli.output import make_console, one_line, print_json
from ramify.cli.tables import table
from ramify.store.clock import now_ms
from ramify.store.keys import Key, Keys, Role
from ramify.store.schema import DEFAULT_TENANT

ROLES = ", ".join(Role)

app = typer.Typer(
    help="API keys: create, list, revoke. They count where the gateway runs with --keys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("create")
def create(
    name: Annotated[str, typer.Option(metavar="TEXT", help="What or whom it is for.")],
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose jobs it makes and sees.")] = DEFAULT_TENANT,
    role: Annotated[str, typer.Option(metavar="ROLE", help=f"One of {ROLES}; each may do what those before it may.")] = "submit",
    expires_days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, metavar="DAYS", help="Good for so long.", show_default="for ever")
    ] = None,
    store: StoreOption = None,
    store_file: StoreFileOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: nobody can tell it again. What else there is to say goes to standard error."""
    if role not in [*Role]:
        raise UsageError(f"--role is one of {ROLES}, not {role!r}")
    by = operator()
    key, text = at_store(
        store, store_file, home, lambda database: Keys(database).create(by, tenant, Role(role), name, expires_days)
    )
    if as_json:
        print_json({**_record(key), "key": text})
        return
    until = "" if key.expires_ms is None else f", until {moment(key.expires_ms)} UTC"
    print(f"key {key.key_id} of tenant {tenant}, role {role}{until}; keep what follows, it is not shown again", file=sys.stderr)
    print(text)


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Only this one's.")] = None,
    store: StoreOption = None,
    store_file: StoreFileOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """List keys, the oldest first, also those that are good no more."""
    found = at_store(store, store_file, home, lambda database: Keys(database).listed(tenant))
    if as_json:
        for key in found:
            print_json(_record(key))
        return
    shown, now = table("id", "tenant", "role", "name", "made", "expires", "state"), now_ms()
    for key in found:
        fault = key.fault(now)
        state = Text(fault.split()[-1], "red") if fault else Text("good", "green")
        shown.add_row(
            key.key_id, key.tenant, key.role, one_line(key.name), moment(key.created_ms), moment(key.expires_ms, "never"), state
        )
    if found:
        make_console().print(shown)
    else:
        print("no keys; `ramify keys create` makes one", file=sys.stderr)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `ramify keys list` tells it.")],
    store: StoreOption = None,
    store_file: StoreFileOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Have a key be good for nothing: new calls fail within 2 seconds, and streams that are open within 10."""
    by = operator()
    bare = key_id.removeprefix("rk_").partition("_")[0]  # a whole key names itself too
    key = at_store(store, store_file, home, lambda database: Keys(database).revoke(by, bare))
    if as_json:
        print_json(_record(key))
    else:
        print(f"key {key.key_id} ({one_line(key.name)}) of tenant {key.tenant} is revoked", file=sys.stderr)


def _record(key: Key) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "tenant": key.tenant,
        "role": str(key.role),
        "name": key.name,
        "created": iso(key.created_ms),
        "expires": iso(key.expires_ms),
        "revoked": iso(key.revoked_ms),
    }
