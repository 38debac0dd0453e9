"""What a verifier on ONNX Runtime saves by keeping the keys and values of chains that grow.

Chains grow step by step, and after each step the newest one is scored: once by computing what is new, once by a pass over the
whole chain. Compute is the CPU time of the process. The models are a decoder of random weights that is large enough for products
to outweigh the rest, in a context that holds 40 steps of about 25 tokens, and the little one of the demo, in which 15 fit.
`python -m ramify.cli.bench.prm` measures it alone.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.local.models import tiny24
from ramify.verifier import conventions
from ramify.verifier.backends.onnx import OnnxReader
from ramify.verifier.reading import Pair, Row

CHAINS = 32
STEPS = (10, 40)  # of a chain, at which figures are given
PROBLEM_TOKENS, STEP_TOKENS = (40, 80), (15, 35)
HEAD = Pair(3, 5)
TINY_STEPS = (5, 15)
TINY_LINE = "0123456789 +-*/=:|"  # the little model's alphabet
TINY_LINE_TOKENS = (9, 15)
SEED = 1


def measure(chains: int = CHAINS) -> dict[str, Any]:
    """Figures by model and number of steps.

    For each number of steps: CPU seconds and tokens of both ways, for all scores up to there (`cpu_ratio` is how many times less
    the incremental way takes) and for the last step's alone (`last_step_cpu_ratio`). `difference_max` is that of the log-odds.

    Args:
        chains: How many grow together.
    """
    found = {"chains": chains, "tiny24": _measure_tiny24(chains)}
    try:
        from ramify.cli.bench._decoder import Sizes, write_decoder
    except ImportError:
        return found | {"decoder": "not measured: the package onnx is not installed"}
    sizes = Sizes()
    with tempfile.TemporaryDirectory() as folder:
        incremental = OnnxReader(write_decoder(Path(folder, "past"), sizes), HEAD)
        # The same weights in a graph that neither takes nor gives keys and values: the cheapest pass over a whole chain.
        full = OnnxReader(write_decoder(Path(folder, "whole"), sizes, past=False), HEAD)
        rows = _random_rows(chains, sizes.vocabulary)
        figures = _grow(incremental, full, rows, rows, STEPS)
    shape = {"parameters": sizes.parameters, "layers": sizes.layers, "hidden": sizes.hidden, "context": sizes.context}
    return found | {"decoder": shape | figures}


def _measure_tiny24(chains: int) -> dict[str, Any]:
    """Figures of the demo's model, asked as its convention says; a row of one part is read in one pass."""
    folder, rng = tiny24() / "prm", np.random.default_rng(SEED)
    convention = conventions.make_convention("newline", conventions.read_subject(folder), {})
    rows = []
    for chain in range(chains):
        lengths = rng.integers(TINY_LINE_TOKENS[0], TINY_LINE_TOKENS[1], TINY_STEPS[-1], endpoint=True) - 1
        lines = ["".join(rng.choice(list(TINY_LINE), length)) for length in lengths]
        rows += convention.render(f"{chain % 10} 5 6 10>24", lines, 0)
    incremental, full = OnnxReader(folder, convention.head), OnnxReader(folder, convention.head, cache_bytes_max=0)
    return _grow(incremental, full, rows, [row._replace(chunks=row.chunks[-1:]) for row in rows], TINY_STEPS)


def _random_rows(chains: int, vocabulary: int) -> list[Row]:
    """Chains that have nothing in common, of a problem and the largest number of steps."""
    rng, rows = np.random.default_rng(SEED), []
    for _ in range(chains):
        problem = rng.integers(*PROBLEM_TOKENS, 1, endpoint=True)
        ends = np.cumsum([*problem, *rng.integers(*STEP_TOKENS, STEPS[-1], endpoint=True)]).astype(np.int32)
        rows.append(Row(rng.integers(0, vocabulary, ends[-1]).astype(np.int32), ends[1:] - 1, ends))
    return rows


def _grow(
    incremental: OnnxReader, full: OnnxReader, rows: Sequence[Row], whole_rows: Sequence[Row], steps: Sequence[int]
) -> dict[str, Any]:
    """Figures at some numbers of steps, while chains grow up to the last. `full` gets the same rows, cut its own way."""
    figures: dict[str, Any] = {}
    readers, asked = (incremental, full), (rows, whole_rows)
    for reader in readers:  # warms up
        reader.read([Row(row.tokens[::-1], row.reads[:1], np.array([len(row.tokens)])) for row in rows[:2]])
    spent, difference = np.zeros(2), 0.0
    before = np.array([reader.tokens_read for reader in readers], np.int64)
    for step in range(1, steps[-1] + 1):
        took, odds = np.zeros(2), []
        for way, reader in enumerate(readers):
            grown = [_until(row, step) for row in asked[way]]
            began = time.process_time()
            odds.append(np.concatenate(reader.read(grown)))
            took[way] = time.process_time() - began
        spent += took
        difference = max(difference, float(np.abs(odds[0] - odds[1]).max()))
        if step in steps:
            figures[str(step)] = _figures(spent, took, np.array([reader.tokens_read for reader in readers], np.int64) - before)
    return figures | {"cache_bytes": incremental.cache_bytes, "difference_max": difference}


def _until(row: Row, step: int) -> Row:
    """The row of a chain's first steps, that asks for the score of the last of them."""
    end = int(row.reads[step - 1]) + 1
    ends = row.chunks[row.chunks < end]
    return Row(row.tokens[:end], row.reads[step - 1 : step], np.append(ends, np.int32(end)))


def _figures(spent: NDArray[np.float64], took: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, Any]:
    """CPU seconds in all and of the last step, and tokens in all, each of the incremental way and of the full one."""
    return {
        "cpu_ratio": round(spent[1] / spent[0], 1),
        "last_step_cpu_ratio": round(took[1] / took[0], 1),
        "tokens_ratio": round(tokens[1] / tokens[0], 1),
        "incremental_cpu_s": round(spent[0], 2),
        "full_cpu_s": round(spent[1], 2),
        "incremental_tokens": int(tokens[0]),
        "full_tokens": int(tokens[1]),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
