"""Judges the two models on the held-out puzzles: `python infra/models/tiny24/judge.py`; the card's figures.

The generator by exact check: greedily, per sample and for any of 16 samples at temperature 1. The PRM by the
exact labels of those samples' steps, at every depth: accuracy at 0.5, and the area under the ROC curve.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import puzzles
import torch
from model import TinyLlama
from numpy.typing import NDArray
from safetensors.torch import load_file
from sample import sample, scores

HERE = Path(__file__).resolve().parent


def load_folder(folder: Path) -> TinyLlama:
    """The model of an exported folder."""
    model = TinyLlama()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def area(found: NDArray[np.float64], wanted: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a `+` outranks a `-`, a tie counting half."""
    plus, minus = np.sort(found[wanted]), found[~wanted]
    if not len(plus) or not len(minus):
        return float("nan")
    above = len(plus) - np.searchsorted(plus, minus, "right")
    tied = np.searchsorted(plus, minus, "right") - np.searchsorted(plus, minus, "left")
    return float((above + tied / 2).sum() / (len(plus) * len(minus)))


def judge_generator(model: TinyLlama, draws: int, seed: int) -> list[tuple[puzzles.Problem, str]]:
    """Prints the generator's figures; gives its samples."""
    problems = puzzles.heldout()
    prompts = [problem.line() for problem in problems]
    greedy = [puzzles.solves(*pair) for pair in zip(problems, sample(model, prompts, 0.0), strict=True)]
    repeated = [problem for problem in problems for _ in range(draws)]
    drawn = list(zip(repeated, sample(model, [p.line() for p in repeated], 1.0, seed), strict=True))
    solved = np.array([puzzles.solves(*pair) for pair in drawn]).reshape(-1, draws)
    each, some = solved.mean(), solved.any(1).mean()
    print(f"generator: greedy {np.mean(greedy):.1%}, per sample {each:.1%}, any of {draws} {some:.1%}")
    return drawn


def judge_prm(model: TinyLlama, drawn: list[tuple[puzzles.Problem, str]]) -> None:
    """Prints the PRM's figures by depth, on samples of a generator."""
    unique = sorted({(problem.line(), text): problem for problem, text in drawn}.items())
    found = scores(model, [line + text for (line, text), _ in unique])
    wanted = [puzzles.labels(problem, text.splitlines()) for (_, text), problem in unique]
    for depth in range(5):
        # Chains that share a prefix share a state: each counts once.
        states = {
            line + "".join(text.splitlines(keepends=True)[:depth]): (odds[depth], marks[depth])
            for ((line, text), _), odds, marks in zip(unique, found, wanted, strict=True)
            if len(odds) > depth
        }
        if states:
            odds, marks = (np.array(column) for column in zip(*states.values(), strict=True))
            print(
                f"PRM after {depth} steps: {len(marks)} states, {marks.mean():.1%} +, "
                f"accuracy {((odds > 0.5) == marks).mean():.2%}, AUC {area(odds, marks):.4f}"
            )


def main() -> None:
    """Judges the exported folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn = judge_generator(load_folder(options.folder / "generator"), options.draws, options.seed)
    judge_prm(load_folder(options.folder / "prm"), drawn)


if __name__ == "__main__":
    main()
