"""`ramify bench NAME`: figures, as one JSON object on the last line."""

import typer

from ramify.cli.bench.core import core
from ramify.cli.bench.durable import durable
from ramify.cli.bench.fairness import fairness
from ramify.cli.bench.gateway import gateway
from ramify.cli.bench.latency import latency
from ramify.cli.bench.quality import quality
from ramify.cli.bench.recovery import recovery
from ramify.cli.bench.shell import shell
from ramify.cli.bench.utilization import utilization
from ramify.cli.bench.verifier import verifier

app = typer.Typer(help="Measure. Each command prints one JSON object on its last line.", no_args_is_help=True)
app.command()(quality)
app.command()(core)
app.command()(latency)
app.command()(verifier)
app.command()(gateway)
app.command()(durable)
app.command()(recovery)
app.command()(utilization)
app.command()(shell)
app.command()(fairness)
