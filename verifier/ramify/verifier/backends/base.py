"""What a backend is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from ramify.verifier.chains import Chain, ChainScores
from ramify.verifier.columns import ChainColumns, ColumnScores


class Scorer(Protocol):
    """A model that scores chains. Loaded and warmed up once constructed."""

    @property
    def name(self) -> str:
        """Its name in requests."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever a score does: scores of different revisions must not be mixed."""
        ...

    @property
    def backend(self) -> str:
        """What runs it: "onnx", "rule" or "simulated"."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """Tokens of the longest chain; 0 means no bound."""
        ...

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of problems and steps that are worth one call; a chain that is longer goes alone."""
        ...

    @property
    def batch_wait_ms_max(self) -> float:
        """How long an idle model gains by waiting for a fuller batch."""
        ...

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        """The scores of a batch. Blocks: called in a worker thread, one call at a time.

        What is wrong with one chain is a fault of its own; an exception fails them all.
        """
        ...


class ChainScorer(ABC):
    """A base of scorers that look at one chain at a time and not at columns."""

    @abstractmethod
    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        """The scores of each chain, in order. Blocks, and fails, as `Scorer.score_columns`."""

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        """See `Scorer`. Scores each distinct chain once: children that were sampled alike often share a batch."""
        each = chains.chains()
        unique = list(dict.fromkeys(each))
        found = dict(zip(unique, self.score(unique), strict=True))
        return ColumnScores.of([found[chain] for chain in each], chains)
