"""`ramify bench NAME`: figures, as one JSON object on the last line."""

import typer

from ramify.cli.bench.quality import quality

app = typer.Typer(help="Measure. Each command prints one JSON object on its last line.", no_args_is_help=True)
app.command()(quality)


@app.callback()
def root() -> None:
    """Keep `quality` a command of its own while it is the only one."""
