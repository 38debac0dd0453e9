"""Chains and their scores as columns: one array for all chains of a batch in place of an object for each."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain as flatten
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.errors import InvalidRequestError

I64 = NDArray[np.int64]


class _Chain(Protocol):
    """What `Chain` and the proto's message of that name have in common."""

    @property
    def problem(self) -> str: ...

    @property
    def steps(self) -> Sequence[str]: ...

    @property
    def reference(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class ChainColumns:
    """R chains: the texts of each one's problem and steps. What holds together is checked once, here.

    Raises:
        InvalidRequestError: a number is negative, or the columns do not fit each other.
    """

    text: NDArray[np.uint8]  # UTF-8: problem and steps of the first chain, then those of the next
    text_count: NDArray[np.int32]  # [R + sum of lengths] bytes of each of them
    length: NDArray[np.int32]  # [R] steps of each chain
    references: Sequence[str] = ()  # R right answers, or none
    known: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))  # [R] leading steps that are not asked for
    byte_ends: I64 = field(init=False)  # [R] where each chain's text ends
    step_ends: I64 = field(init=False)  # [R] where each chain's scores end

    def __post_init__(self) -> None:
        for name, numbers in (("length", self.length), ("text_count", self.text_count)):
            if numbers.min(initial=0) < 0:
                at = int(np.flatnonzero(numbers < 0)[0])
                raise InvalidRequestError(f"{name}[{at}] is {numbers[at]}; it must not be negative")
        step_ends = np.cumsum(self.length, dtype=np.int64)
        steps, chains = int(step_ends[-1]) if len(step_ends) else 0, len(self.length)
        if len(self.text_count) != chains + steps:
            raise InvalidRequestError(
                f"text_count has {len(self.text_count)} numbers; {chains} problems and {steps} steps need {chains + steps}"
            )
        text_ends = np.cumsum(self.text_count, dtype=np.int64)
        size = int(text_ends[-1]) if len(text_ends) else 0
        if len(self.text) != size:
            raise InvalidRequestError(f"text has {len(self.text)} bytes; the numbers in text_count add up to {size}")
        if len(self.references) not in (0, chains):
            raise InvalidRequestError(
                f"there are {len(self.references)} references for {chains} chains; give one for each, or none"
            )
        if not len(self.known):
            object.__setattr__(self, "known", np.zeros(chains, np.int32))
        object.__setattr__(self, "step_ends", step_ends)
        object.__setattr__(self, "byte_ends", text_ends[step_ends + np.arange(chains)])

    def __len__(self) -> int:
        return len(self.length)

    @classmethod
    def of(cls, chains: Sequence[_Chain]) -> Self:
        """The columns of some chains.

        Raises:
            InvalidRequestError: a text holds half a character, a lone surrogate.
        """
        try:
            texts = [text.encode() for chain in chains for text in (chain.problem, *chain.steps)]
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"a text can't be written as UTF-8: {error}") from error
        return cls(
            np.frombuffer(b"".join(texts), np.uint8),
            np.fromiter(map(len, texts), np.int32, len(texts)),
            np.fromiter((len(chain.steps) for chain in chains), np.int32, len(chains)),
            [chain.reference for chain in chains] if any(chain.reference for chain in chains) else (),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The chains of at least one part, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        told = any(part.references for part in parts)
        return cls(
            np.concatenate([part.text for part in parts]),
            np.concatenate([part.text_count for part in parts]),
            np.concatenate([part.length for part in parts]),
            list(flatten.from_iterable(part.references or [""] * len(part) for part in parts)) if told else (),
            np.concatenate([part.known for part in parts]),
        )

    @property
    def step_count(self) -> int:
        """The steps of all chains."""
        return len(self.text_count) - len(self)

    @property
    def fresh_bytes(self) -> I64:
        """`[R]` bytes of each chain's steps whose scores are wanted, and of its problem if those are all of its steps."""
        ends = np.cumsum(self.text_count, dtype=np.int64)
        firsts = self.step_ends - self.length + np.arange(len(self)) + np.where(self.known, self.known + 1, 0)
        return np.asarray(self.byte_ends - ends[firsts] + self.text_count[firsts], np.int64)

    def bytes_before(self, index: int) -> int:
        """Bytes of the chains [0, index)."""
        return _before(self.byte_ends, index)

    def fitting(self, start: int, bytes_max: int) -> int:
        """The end of the longest run of chains from `start` on that has at most `bytes_max` bytes; `start` if there is none."""
        if bytes_max < 0:
            return start
        return int(np.searchsorted(self.byte_ends, self.bytes_before(start) + bytes_max, "right"))

    def part(self, start: int, end: int) -> Self:
        """The chains [start, end), as views."""
        if (start, end) == (0, len(self)):
            return self
        first, last = (_before(self.step_ends, index) + index for index in (start, end))
        return type(self)(
            self.text[self.bytes_before(start) : self.bytes_before(end)],
            self.text_count[first:last],
            self.length[start:end],
            self.references[start:end],
            self.known[start:end],
        )

    def chains(self) -> list[Chain]:
        """Each chain as an object. What is no UTF-8 is read as the replacement character."""
        text, ends = self.text.tobytes(), np.cumsum(self.text_count, dtype=np.int64).tolist()
        texts = [text[start:end].decode("utf-8", "replace") for start, end in zip([0, *ends], ends, strict=False)]
        found, at = [], 0
        for index, size in enumerate(self.length.tolist()):
            reference = self.references[index] if self.references else ""
            found.append(Chain(texts[at], tuple(texts[at + 1 : at + 1 + size]), reference))
            at += 1 + size
        return found


class ChainFault(NamedTuple):
    """Why the chain of that number in a batch has no scores."""

    chain: int
    error: ChainError
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class ColumnScores:
    """The scores of R chains."""

    scores: NDArray[np.float32]  # [sum of lengths] in [0, 1], first step first, one chain after the other; NaN: it has a fault
    faults: list[ChainFault]  # of the chains that have no scores, in order

    @classmethod
    def of(cls, found: Sequence[ChainScores], chains: ChainColumns) -> Self:
        """The scores of each of the chains, as columns.

        Raises:
            ValueError: there is not one for each chain, or not one score for each step.
        """
        scores = np.full(chains.step_count, np.nan, np.float32)
        faults = []
        ends = zip((chains.step_ends - chains.length).tolist(), chains.step_ends.tolist(), strict=True)
        for index, (each, (start, end)) in enumerate(zip(found, ends, strict=True)):
            if each.error:
                faults.append(ChainFault(index, each.error, each.message))
            elif len(each.scores) != end - start:
                raise ValueError(f"chain {index} has {end - start} steps, but {len(each.scores)} scores")
            else:
                scores[start:end] = each.scores
        return cls(scores, faults)

    def checked(self, chains: ChainColumns) -> Self:
        """The same; a chain with a score that was asked for and is no number between 0 and 1 has a fault.

        Raises:
            ValueError: there is not one score for each step of the chains.
        """
        if len(self.scores) != chains.step_count:
            raise ValueError(f"it gave {len(self.scores)} scores for {chains.step_count} steps")
        fine = (self.scores >= 0) & (self.scores <= 1)
        if fine.all():
            return self
        chain = np.repeat(np.arange(len(chains)), chains.length)
        step = np.arange(chains.step_count) - (chains.step_ends - chains.length)[chain]
        known = {fault.chain for fault in self.faults}
        wrong = np.flatnonzero(~fine & (step >= chains.known[chain]))
        new = {int(chain[at]): int(at) for at in wrong[::-1].tolist() if int(chain[at]) not in known}
        if not new:
            return self
        scores = self.scores.copy()
        scores[np.isin(chain, list(new))] = np.nan
        told = [
            ChainFault(each, ChainError.MODEL, f"the model gave {self.scores[at]} for step {step[at] + 1}, no number from 0 to 1")
            for each, at in new.items()
        ]
        return type(self)(scores, sorted(self.faults + told))

    def part(self, chains: ChainColumns, start: int, end: int) -> Self:
        """The scores of those of the chains in [start, end)."""
        first, last = _before(chains.step_ends, start), _before(chains.step_ends, end)
        low, high = (bisect_left(self.faults, index, key=lambda fault: fault.chain) for index in (start, end))
        faults = [fault._replace(chain=fault.chain - start) for fault in self.faults[low:high]]
        return type(self)(self.scores[first:last], faults)

    def chains(self, columns: ChainColumns) -> list[ChainScores]:
        """The scores as an object for each of the chains."""
        values, start = self.scores.tolist(), 0
        found = []
        for end in columns.step_ends.tolist():
            found.append(ChainScores(values[start:end]))
            start = end
        for fault in self.faults:
            found[fault.chain] = ChainScores(error=fault.error, message=fault.message)
        return found


def _before(ends: I64, index: int) -> int:
    """How much there is of the chains [0, index)."""
    return int(ends[index - 1]) if index else 0
