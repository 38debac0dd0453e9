"""Accuracy against tokens, as a picture."""

from pathlib import Path

import typer

from ramify.cli.bench.names import TITLES

# Told apart by colour and by mark, so that a reader who sees one of the two still can.
COLOURS = (
    "#4c72b0",
    "#8aa6d6",
    "#937860",
    "#c44e52",
    "#dd8452",
    "#8172b3",
    "#55a868",
    "#64b5cd",
    "#222222",
    "#777777",
    "#da8bc3",
    "#ccb974",
)
MARKS = "osDv^<>PX*hp"


def plot(figures: dict[str, object], budgets: list[int], file: Path) -> None:
    """Draw one line for each algorithm through its budgets, and points for the single chains.

    Raises:
        typer.BadParameter: matplotlib isn't installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise typer.BadParameter("--plot needs matplotlib: pip install 'ramify[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    picture, axes = pyplot.subplots(figsize=(8.4, 5.2), dpi=150)
    for (name, title), colour, mark in zip(TITLES.items(), COLOURS, MARKS, strict=True):
        found = [each for budget in budgets if isinstance(each := figures.get(f"{name}{budget}"), dict)]
        if found:
            tokens, solved = [each["tokens_per_puzzle"] for each in found], [each["solved"] for each in found]
            axes.plot(tokens, solved, color=colour, marker=mark, markersize=5, linewidth=1.4, label=title)
    for name, mark in (("greedy", "+"), ("one_sample", "x")):
        each = figures.get(name)
        if isinstance(each, dict):
            axes.plot(
                each["tokens_per_puzzle"],
                each["solved"],
                color="black",
                marker=mark,
                linestyle="none",
                label=name.replace("_", " "),
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("tokens sampled per puzzle")
    axes.set_ylabel("of 200 held-out puzzles solved")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture.tight_layout()
    picture.savefig(file)
    pyplot.close(picture)
