"""What a rule is: an exact checker of chains, for problems whose answers can be checked."""

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Rule(ABC):
    """A base of rules, ours and the user's. Judges chains by their texts alone, with no model behind it."""

    name: str
    """By which it is asked for."""

    revision: str
    """Changes whenever a score does: scores of different revisions must not be mixed."""

    threads: int = 1
    """In which `score` is called at once; more than one is of use to a rule that waits for something."""

    def normalise_problem(self, text: str) -> str:
        """The canonical prompt of the problem that `text` states; the text itself where any text is a problem.

        Raises:
            ProblemError: it states none; the message says what is wrong, where, and what is expected.
        """
        return text

    def check_reference(self, reference: str) -> None:  # noqa: B027 - most rules need none
        """Raises `ProblemError` where a problem's right answer is missing, or none that the rule could compare with."""

    @abstractmethod
    def score(self, problem: str, steps: Sequence[str], reference: str) -> list[float]:
        """One score in [0, 1] for each of the steps (at least one); the last one is the verdict on the chain.

        Raises:
            ProblemError: as `normalise_problem` and `check_reference`.
            Exception: it could not tell. The chain then has an error and no score.
        """

    def close(self) -> None:  # noqa: B027 - most rules hold nothing
        """Frees what it holds. A later `score` may take hold of it again."""
