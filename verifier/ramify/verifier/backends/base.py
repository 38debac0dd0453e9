"""What a backend is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
        """What runs it: "onnx", "rule", "simulated", "transformers" or "vllm"."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """Tokens of the longest chain; 0 means no bound."""
        ...

    @property
    def convention(self) -> str:
        """How it is asked, see `conventions`; empty for what is no model."""
        ...

    @property
    def batch_tokens_max(self) -> int:
        """Tokens that are worth one call; a chain that has more goes alone."""
        ...

    @property
    def calls_max(self) -> int:
        """Calls that may be open at once, each in a thread of its own."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether to keep its scores: a chain that was scored is then neither scored nor sent again."""
        ...

    @property
    def batch_wait_ms_max(self) -> float:
        """How long an idle model gains by waiting for a fuller batch."""
        ...

    @property
    def rereads(self) -> bool:
        """Whether each step's score costs reading the chain up to there: of others one pass gives all steps' scores."""
        ...

    @property
    def tokenizes(self) -> bool:
        """Whether `tokens` takes its time: it is called in a thread then."""
        ...

    @property
    def failure(self) -> str:
        """Why it scores no more, for people; empty while it can."""
        ...

    def tokens(self, chains: ChainColumns) -> NDArray[np.int64]:
        """`[R]` what each chain costs: the tokens that have to be computed for it. Blocks."""
        ...

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        """The scores of a batch; those of `chains.known` steps may be anything. Blocks: called in a worker thread.

        What is wrong with one chain is a fault of its own; an exception fails them all.
        """
        ...

    def close(self) -> None:
        """Frees what it holds; no call is open."""
        ...


class ChainScorer(ABC):
    """A base of scorers that look at one chain at a time and not at columns."""

    convention = ""
    calls_max = 1
    remembers = False
    rereads = False
    tokenizes = False
    failure = ""

    def tokens(self, chains: ChainColumns) -> NDArray[np.int64]:
        """See `Scorer`: bytes of what is new."""
        return chains.fresh_bytes

    def close(self) -> None:  # noqa: B027 - not every scorer holds something
        """See `Scorer`."""

    @abstractmethod
    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        """The scores of each chain, in order. Blocks, and fails, as `Scorer.score_columns`."""

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        """See `Scorer`. Scores each distinct chain once: children that were sampled alike often share a batch."""
        each = chains.chains()
        unique = list(dict.fromkeys(each))
        found = dict(zip(unique, self.score(unique), strict=True))
        return ColumnScores.of([found[chain] for chain in each], chains)
