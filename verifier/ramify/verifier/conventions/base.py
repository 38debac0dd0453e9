"""What a convention is: how a reward model wants to be asked."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from ramify.chat import ChatFormat
from ramify.verifier.conventions.vocabulary import PIECES_KEPT, Tokens, UnknownText, Vocabulary
from ramify.verifier.errors import InvalidRequestError
from ramify.verifier.reading import Head, Row


class ConventionError(InvalidRequestError):
    """A chain can't be put to the model. The message says which part of it is wrong, and what with it."""


class Convention(Protocol):
    """Turns chains into what a model reads. The same texts are always the same tokens."""

    @property
    def name(self) -> str:
        """See `ramify.verifier.conventions.CONVENTIONS`."""
        ...

    @property
    def head(self) -> Head:
        """What is read off the model."""
        ...

    @property
    def rereads(self) -> bool:
        """Whether each step has a row of its own; otherwise one row reads them all."""
        ...

    def render(self, problem: str, steps: Sequence[str], known: int) -> list[Row]:
        """Rows whose reads, one after the other, are those of the steps from the `known`th on, of which there is at least one.

        The tokens up to a step's read follow from the problem and the steps up to that one: where one row reads several
        steps, those of a shorter chain are a prefix of a longer chain's.

        Raises:
            ConventionError: the chain can't be put to the model.
        """
        ...


class Subject(NamedTuple):
    """What a convention has to know of a model."""

    vocabulary: Vocabulary
    chat: ChatFormat
    config: Mapping[str, Any]  # config.json

    @property
    def labels(self) -> int:
        """How many numbers a classifier gives; transformers' default, which it does not write down, is two."""
        told = len(self.config.get("id2label") or ()) or self.config.get("num_labels")
        return int(told or (2 if self.architecture.endswith("Classification") else 1))

    @property
    def architecture(self) -> str:
        """The model's class in transformers, or what its maker calls it; may be empty."""
        return str((self.config.get("architectures") or [""])[0])


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Of a convention that has none."""


class _Rendering(ABC):
    """A base of conventions that says which part of a chain the vocabulary lacks."""

    def __init__(self, subject: Subject) -> None:
        self._vocabulary = subject.vocabulary

    def render(self, problem: str, steps: Sequence[str], known: int) -> list[Row]:
        """See `Convention`."""
        try:
            return self._rows(problem, steps, known)
        except UnknownText:
            raise ConventionError(self._vocabulary.lacking(problem, steps)) from None

    @abstractmethod
    def _rows(self, problem: str, steps: Sequence[str], known: int) -> list[Row]:
        """As `render`; raises also `UnknownText`."""


class Stepwise(_Rendering):
    """A base of conventions of process reward models: one pass gives the scores of all steps, each at the step's last token."""

    rereads = False

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._begun = lru_cache(PIECES_KEPT)(self.begin)

    def _rows(self, problem: str, steps: Sequence[str], known: int) -> list[Row]:
        parts = [*self._begun(problem, steps[0]), *map(self.step, steps[1:])]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int32)
        return [Row(np.concatenate(parts), ends[1 + known :] - 1, ends if ends[0] else ends[1:])]

    @abstractmethod
    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """The tokens of what is before the steps, and one or more of the first step. Raises `UnknownText`."""

    @abstractmethod
    def step(self, text: str) -> Tokens:
        """The tokens of any later step: one or more. Raises `UnknownText`."""


class Whole(_Rendering):
    """A base of conventions that judge a chain as a whole: a step's score is that of the chain that ends with it."""

    rereads = True

    def _rows(self, problem: str, steps: Sequence[str], known: int) -> list[Row]:
        rows = []
        for size in range(known + 1, len(steps) + 1):
            tokens, before = self.whole(problem, "".join(steps[:size]).rstrip("\n"))
            chunks = sorted({min(before, len(tokens)), len(tokens)} - {0})
            rows.append(Row(tokens, np.array([len(tokens) - 1], np.int32), np.array(chunks, np.int32)))
        return rows

    @abstractmethod
    def whole(self, problem: str, solution: str) -> tuple[Tokens, int]:
        """The tokens of a chain, and how many of them are before the solution. Raises `UnknownText`."""
