"""What a shell counts, for whoever tells of it: the shell itself pays for an addition, and knows no Ray."""

from collections import Counter, defaultdict, deque
from typing import Literal

from ramify.scheduler.commands import Commit
from ramify.scheduler.plan import Outcome

Counted = Literal[
    "steps", "tokens", "trees_done", "retries", "lost_steps", "takeovers", "store_failures", "score_calls", "tenant_tokens"
]
Timed = Literal["commit_seconds", "score_call_seconds", "recovery_seconds"]
Tags = tuple[str, ...]

TIMES_MAX = 4096  # of a kind, that nobody has taken yet; the oldest are forgotten then


class Meters:
    """See the module."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Counted, Tags]] = Counter()
        self._times: defaultdict[tuple[Timed, Tags], deque[float]] = defaultdict(lambda: deque(maxlen=TIMES_MAX))

    def count(self, what: Counted, amount: int, *tags: str) -> None:
        """So many more; 0 makes it known that there are none. The values of the metric's tags are in the metric's order."""
        self._counts[what, tags] += amount

    def committed(self, commit: Commit) -> None:
        """All of this is durable."""
        self.count("steps", len(commit.nodes.node_id))
        for delta in commit.jobs:
            self.count("tokens", delta.tokens)
            self.count("tenant_tokens", delta.tokens, delta.tenant)
            self.count("retries", delta.retries)
            for outcome, trees in Counter(result.outcome for result in delta.results).items():
                self.count("trees_done", trees, Outcome(outcome).name.lower())

    def took(self, what: Timed, seconds: float, *tags: str) -> None:
        """It took so long once; tags as above."""
        self._times[what, tags].append(seconds)

    def take_counts(self) -> dict[tuple[Counted, Tags], int]:
        """What has come since this was asked last."""
        found, self._counts = dict(self._counts), Counter()
        return found

    def take_times(self) -> dict[tuple[Timed, Tags], list[float]]:
        """Likewise."""
        found = {name: [*times] for name, times in self._times.items()}
        self._times.clear()
        return found
