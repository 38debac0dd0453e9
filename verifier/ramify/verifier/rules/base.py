"""What a rule is: an exact checker of chains, for problems whose answers can be checked."""

from collections.abc import Sequence
from typing import Protocol


class Rule(Protocol):
    """Pure and quick: called for each chain, on the event loop's machine, with no model behind it."""

    @property
    def name(self) -> str:
        """The name by which it is asked for."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever a score does: scores of different revisions must not be mixed."""
        ...

    def normalise_problem(self, text: str) -> str:
        """The canonical prompt of the problem that `text` states.

        Raises:
            ProblemError: it states none; the message says what is wrong, where, and what is expected.
        """
        ...

    def score(self, problem: str, steps: Sequence[str], reference: str) -> list[float]:
        """One score in [0, 1] for each of the steps (at least one).

        Raises:
            ProblemError: as `normalise_problem`.
        """
        ...
