"""A model as a scorer: a convention turns chains into tokens, a reader runs the model."""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.chains import NO_STEP, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.conventions.base import Convention, ConventionError
from ramify.verifier.reading import Reader, Row

# Chains whose tokens are kept from when they are counted until they are read.
_CHAINS_KEPT = 1 << 11


class ModelScorer:
    """See the module.

    Args:
        name: Its name in requests.
        convention: How the model is asked.
        reader: The model; closed with this.
        texts: Changes with everything, the reader's own files apart, that bears on what the convention asks.
    """

    remembers = True
    tokenizes = True
    batch_wait_ms_max = 2.0

    def __init__(self, name: str, convention: Convention, reader: Reader, *, texts: str = "") -> None:
        self.name = name
        self.convention = convention.name
        self.rereads = convention.rereads
        self.backend = reader.backend
        self.context_tokens_max = reader.context_tokens_max
        self.batch_tokens_max = reader.batch_tokens_max
        self.calls_max = reader.calls_max
        told = "\0".join((reader.revision, convention.name, texts))
        self.revision = hashlib.sha256(told.encode()).hexdigest()[:12]
        self._convention, self._reader = convention, reader
        self._rows = lru_cache(_CHAINS_KEPT)(self._render)

    @property
    def failure(self) -> str:
        """See `Scorer`."""
        return self._reader.failure

    def tokens(self, chains: ChainColumns) -> NDArray[np.int64]:
        """See `Scorer`: the tokens from the first wanted step on, and the problem's where no step is known; at least one."""
        counts = []
        for chain, known in zip(chains.chains(), chains.known.tolist(), strict=True):
            rows = self._rows(chain.problem, chain.steps, known)
            counts.append(1 if isinstance(rows, ChainScores) else sum(_fresh(row, known) for row in rows) or 1)
        return np.array(counts, np.int64)

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        """See `Scorer`. Reads each distinct chain once: children that were sampled alike often share a batch."""
        asked = [(chain.problem, chain.steps, known) for chain, known in zip(chains.chains(), chains.known.tolist(), strict=True)]
        found = {each: self._rows(*each) for each in dict.fromkeys(asked)}
        rows = [row for each in found.values() if not isinstance(each, ChainScores) for row in each]
        reads = iter(self._reader.read(rows) if rows else [])
        results = {
            each: told if isinstance(told, ChainScores) else _scores([x for _ in told for x in next(reads).tolist()], each[2])
            for each, told in found.items()
        }
        scores, faults = np.full(chains.step_count, np.nan, np.float32), []
        for index, (each, end) in enumerate(zip(asked, chains.step_ends.tolist(), strict=True)):
            result = results[each]
            if result.error:
                faults.append(ChainFault(index, result.error, result.message))
            elif len(result.scores) != len(each[1]) - each[2]:
                raise ValueError(f"{len(each[1]) - each[2]} steps were to be read, and {len(result.scores)} were")
            elif result.scores:
                scores[end - len(result.scores) : end] = result.scores
        return ColumnScores(scores, faults)

    def close(self) -> None:
        """See `Scorer`."""
        self._reader.close()

    def _render(self, problem: str, steps: tuple[str, ...], known: int) -> list[Row] | ChainScores:
        """A chain as tokens, or why it can't be read."""
        if not steps:
            return NO_STEP
        if known >= len(steps):
            return []
        try:
            rows = self._convention.render(problem, steps, known)
        except ConventionError as error:
            return ChainScores(error=ChainError.INVALID, message=str(error))
        longest = max(len(row.tokens) for row in rows)
        if longest > self.context_tokens_max:
            message = f"the chain has {longest} tokens; the model reads at most {self.context_tokens_max}"
            return ChainScores(error=ChainError.TOO_LONG, message=message)
        return rows


def _fresh(row: Row, known: int) -> int:
    """The tokens of a row from the part on that is read first; all of them where no step is known."""
    part = int(np.searchsorted(row.chunks, row.reads[0], "right"))
    return len(row.tokens) - (int(row.chunks[part - 1]) if known and part else 0)


def _scores(odds: Sequence[float], known: int) -> ChainScores:
    """The scores of log-odds, those of the steps after the `known` first ones."""
    for step, x in enumerate(odds, known + 1):
        if not math.isfinite(x):
            return ChainScores(error=ChainError.MODEL, message=f"the model gave {x} at step {step}")
    return ChainScores([_logistic(x) for x in odds])


def _logistic(x: float) -> float:
    # `math` and not numpy, whose vector loops may round the last few elements of an array otherwise than the rest.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
