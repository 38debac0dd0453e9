"""What a backend is."""

from collections.abc import Sequence
from typing import Protocol

from ramify.verifier.chains import Chain, ChainScores


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
        """What runs it: "onnx" or "rule"."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """Tokens of the longest chain; 0 means no bound."""
        ...

    @property
    def batch_chars_max(self) -> int:
        """Characters of problem and steps that are worth one call; a chain that is longer goes alone."""
        ...

    @property
    def batch_wait_ms_max(self) -> float:
        """How long an idle model gains by waiting for a fuller batch."""
        ...

    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        """The scores of each chain, in order. Blocks: called in a worker thread, one call at a time.

        What is wrong with one chain is in its `ChainScores`; an exception fails them all.
        """
        ...
