"""What a policy is: a stateless function from a forest to the next moves of many trees."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows


def no_rows() -> Rows:
    """`[0]`."""
    return np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Moves:
    """What a policy wants done. Rows appear in at most one of `expand`, `prune` and `retire`."""

    expand: Rows = field(default_factory=no_rows)  # [E] nodes to continue; best first within a tree, trees ascending
    count: Rows = field(default_factory=no_rows)  # [E] how many children each
    flags: NDArray[np.uint8] | None = None  # [E] bits of `Flag` for the children; absent: none
    prune: Rows = field(default_factory=no_rows)  # [P] landed nodes that are given up, with all landed nodes below them
    retire: Rows = field(default_factory=no_rows)  # [R] ended nodes that are set aside as candidates
    confirm: Rows = field(default_factory=no_rows)  # [C] nodes whose speculative children are speculative no more
    mark: Rows = field(default_factory=no_rows)  # [M] nodes whose `visits` and `value` are to be
    visits: Rows = field(default_factory=no_rows)  # [M] these,
    value: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))  # [M] and these
    finish: Rows = field(default_factory=no_rows)  # [D] trees that have ended, sorted


class Policy(ABC):
    """A search algorithm. All of its state is in the forest's columns, so it is checkpointed for free.

    Knobs are the fields that a policy's dataclass takes, under the names of `policies.knobs`; others are fixed for its class.
    """

    barrier: Literal["level", "none"] = "level"
    """`level`: asked only about trees with nothing in flight. `none`: asked whenever a step of a tree lands."""

    scores: Literal["step", "end"] = "step"
    """Whether every step is scored as it comes, or the chain as a whole when it has ended."""

    whole: bool = False
    """Whether dead branches must stay in the forest until their tree ends, for `advance` looks at them."""

    votes: bool = False
    """Whether `advance` looks at the `group` of chains that have ended: their answers are compared before it is asked."""

    max_steps: int
    """Depth at which every chain counts as ended."""

    @abstractmethod
    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next moves of `trees` `[T]`, sorted; the forest is read only."""
