"""Trains and exports the generator and the PRM: `python infra/models/tiny24/train.py`.

The data is generated first (exactly labelled, from a fixed seed); the checkpoints go to `--work`, the
artefacts beside this file.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import data
import numpy as np
import puzzles
import torch
from model import Config, TinyLlama
from numpy.typing import NDArray
from sample import sample, scores
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
WIDTHS = (15, 30, 44, 56, data.LENGTH)
"""Batches are padded to one of these widths: few, so that a compiled model is compiled for few shapes."""


BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Recipe:
    """How one of the two models is trained."""

    rows: int
    steps: int
    tokens: int
    rate: float
    auxiliary: float
    """Weight of the labels that are not at a newline."""
    smoothing: float = 0.0
    warmup: int = 200
    decay: float = 0.05
    seed: int = 1
    explore: float = 0.25
    """Share of the generator's traces with any first step, see `data.generator_row`."""


RECIPES = {
    "generator": (
        Recipe(rows=400_000, steps=12_000, tokens=4_096, rate=1.2e-3, auxiliary=1.0),
        # Makes its first steps diverse again, which costs the greedy chain little and saves the search.
        Recipe(rows=120_000, steps=1_500, tokens=4_096, rate=4e-4, auxiliary=1.0, seed=31, explore=0.6),
    ),
    "prm": (Recipe(rows=300_000, steps=10_000, tokens=4_096, rate=1.2e-3, auxiliary=0.05, seed=2),),
}
"""The phases of each model, each of which begins with what the last has left."""


def load_data(kind: str, recipe: Recipe, work: Path) -> data.Arrays:
    """The training arrays, from the work folder where a run with the same recipe has left them."""
    file = work / f"{kind}-{recipe.rows}-{recipe.seed}-{recipe.explore}.npz"
    if not file.exists():
        if kind == "generator":
            ids, labels = data.generator_data(recipe.rows, recipe.seed, recipe.explore)
        else:
            ids, labels = data.prm_data(recipe.rows, recipe.seed)
        generator = work / "generator.pt"
        if kind == "prm" and generator.exists():
            # The errors that the generator really makes, twice over, for they are what a search must see.
            own = own_samples(load(generator), recipe.rows // 25, recipe.seed)
            ids, labels = np.concatenate((ids, own[0], own[0])), np.concatenate((labels, own[1], own[1]))
        np.savez(file, ids=ids, labels=labels)
    with np.load(file) as stored:
        return stored["ids"], stored["labels"]


def own_samples(model: TinyLlama, count: int, seed: int) -> data.Arrays:
    """Samples of the generator, `count` at each of two temperatures, labelled exactly; none is held out."""
    rng, rows = random.Random(seed), []
    problems = data.Problems(rng, data.Mix(countdown=0, three=0, five=0), solvable=True)
    for temperature in (1.0, 1.4):
        drawn = [problems.draw() for _ in range(count)]
        texts = sample(model, [problem.line() for problem in drawn], temperature, seed)
        for problem, text in zip(drawn, texts, strict=True):
            if text and set(text) <= set(data.CHARACTERS):
                rows.append(data.prm_row(problem, text.splitlines()))
    return data.pack(rows)


def batches(arrays: data.Arrays, tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about `tokens` tokens, of rows of like length; (ids, labels), int64 [B, T]."""
    ids, labels = arrays
    lengths = (ids != data.PAD).sum(1)
    rng = np.random.default_rng(seed)
    bins = np.digitize(lengths, WIDTHS, right=True)
    while True:
        epoch: list[tuple[int, NDArray[np.int64]]] = []
        for index, width in enumerate(WIDTHS):
            rows = rng.permutation(np.flatnonzero(bins == index))
            size = tokens // width
            epoch += [(width, rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]
        for choice in rng.permutation(len(epoch)):
            width, rows = epoch[choice]
            yield (
                torch.from_numpy(ids[rows, :width].astype(np.int64)),
                torch.from_numpy(labels[rows, :width].astype(np.int64)),
            )


def loss_of(logits: Tensor, ids: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Mean cross-entropy over the labelled positions, those not at a newline weighted by `auxiliary`."""
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=data.IGNORE, reduction="none",
        label_smoothing=recipe.smoothing,
    )  # fmt: skip
    weights = torch.where(ids == data.NEWLINE, 1.0, recipe.auxiliary).flatten()
    weights = weights * (labels.flatten() != data.IGNORE)
    return (losses * weights).sum() / weights.sum()


def judge(kind: str, model: TinyLlama) -> str:
    """One line on how a checkpoint does: greedy solutions, or the PRM's errors, on held-out puzzles."""
    model.eval()
    if kind == "generator":
        problems = puzzles.heldout()
        texts = sample(model, [problem.line() for problem in problems], 0.0)
        solved = sum(puzzles.solves(problem, text) for problem, text in zip(problems, texts, strict=True))
        return f"greedy {solved}/{len(problems)}"
    right, total = [0] * 4, [0] * 4
    texts, labels = data.heldout_walks()
    for found, wanted in zip(scores(model, texts), labels, strict=True):
        for depth, (score, label) in enumerate(zip(found, wanted, strict=True)):
            right[depth] += (score > 0.5) == label
            total[depth] += 1
    return "accuracy by depth " + " ".join(f"{r / t:.4f}" for r, t in zip(right, total, strict=True))


def save(model: TinyLlama, file: Path) -> None:
    """Writes a checkpoint so that a reader never sees half of it."""
    partial = file.with_suffix(".partial")
    torch.save({"config": asdict(model.config), "state": model.state_dict()}, partial)
    partial.replace(file)


def load(file: Path) -> TinyLlama:
    """Reads a checkpoint."""
    stored = torch.load(file, map_location="cpu", weights_only=True)
    model = TinyLlama(Config(**stored["config"]))
    model.load_state_dict(stored["state"])
    return model.eval()


def train(kind: str, recipe: Recipe, options: argparse.Namespace, init: Path | None) -> None:
    """Trains one model, with a cosine schedule over its steps (or minutes, whichever ends first)."""
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load(init) if init else TinyLlama()
    model.to(device)
    stream = batches(load_data(kind, recipe, options.work), recipe.tokens, recipe.seed)
    run = torch.compile(model, dynamic=False) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=recipe.decay, fused=True)
    begun, mean = time.monotonic(), 0.0
    for step in range(recipe.steps + 1):
        progress = max(step / recipe.steps, (time.monotonic() - begun) / 60 / options.minutes)
        if step % options.every == 0 or progress >= 1:
            save(model, options.work / f"{kind}.pt")
            save(model, options.work / f"{kind}-{step}.pt")
            verdict = judge(kind, model.to("cpu")) if step else "untrained"
            model.to(device).train()
            print(f"{kind} {step} {time.monotonic() - begun:.0f}s loss {mean:.4f} {verdict}", flush=True)
        if progress >= 1:
            break
        warm = min(1.0, (step + 1) / recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        ids, labels = (tensor.to(device) for tensor in next(stream))
        loss = loss_of(run(ids), ids, labels, recipe)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean += (loss.item() - mean) * (0.02 if step > 50 else 0.5)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=("generator", "prm", "export", "all"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tiny24")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    for name, kind in (
        ("rows", int), ("steps", int), ("tokens", int), ("rate", float), ("seed", int), ("explore", float),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help="in place of the recipe's")
    parser.add_argument("--smoothing", type=float, help="label smoothing, in place of the recipe's")
    parser.add_argument("--auxiliary", type=float, help="weight of labels not at a newline")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule after this time")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    return parser.parse_args()


def main() -> None:
    """Runs what the command line asks for."""
    options = parse()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    names = ("rows", "steps", "tokens", "rate", "seed", "smoothing", "auxiliary", "explore")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    for kind, recipes in RECIPES.items():
        if options.part in (kind, "all"):
            init = options.init
            for recipe in recipes[:1] if given or init else recipes:
                train(kind, replace(recipe, **given), options, init)
                init = options.work / f"{kind}.pt"
    if options.part in ("export", "all"):
        import export

        for kind in RECIPES:
            export.export(load(options.work / f"{kind}.pt"), HERE / kind, "newline" if kind == "prm" else "")


if __name__ == "__main__":
    main()
