"""`ramify verifier`: the verifier alone, as a server or for a file of solutions."""

from typing import Any

import typer

from ramify.cli.verifier.command import score, serve

#: Arguments go on to the real command unread.
_PASS_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": list[str]()}

app = typer.Typer(
    help="The verifier alone: reward models and rules, for others to ask or for a file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve", context_settings=_PASS_ON, add_help_option=False)(serve)
app.command("score")(score)
