"""What is paid for, and what for twice: guarantee 6, counted step by step.

A step is paid for when an engine begins it. It may be begun again only if the engine failed at it, or if whoever had it begun has
lost its slot before it was committed; and then it was in flight, or had come since the last commit that became durable: the flush
window.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from ramify.scheduler.commands import Commit
from ramify.scheduler.slots import SLOTS
from tests.simulation.memory_store import MemoryStore


@dataclass
class Owner:
    """What an incarnation of a shard has had sampled."""

    name: str
    begun: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))  # nodes, by slot
    come: dict[int, float] = field(default_factory=dict)  # by node, when its step came to a tree that grew
    collected: dict[int, float] = field(default_factory=dict)  # by sequence, when the commit was made
    informed: bool = False  # an answer of the store has told it that slots are not its own any more


class Costs:
    """See the module."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        store.ended_holds = self.hold_ended
        self.tree_of: dict[int, int] = {}  # of each node that was asked for
        self.owners: dict[str, Owner] = {}
        self.begun: Counter[int] = Counter()  # by node: times that an engine began it
        self.failed: Counter[int] = Counter()  # times that the engine failed at it
        self.excused: Counter[int] = Counter()  # times that it was lost with a slot
        self.tokens: dict[int, int] = {}  # that a node costs
        self.chains: dict[int, list[int]] = {}  # tokens that it continues
        self.broken: list[str] = []  # laws
        self._voided = 0

    def owner(self, name: str) -> Owner:
        """What is known of an owner."""
        return self.owners.setdefault(name, Owner(name))

    def begin(self, name: str, node: int, chain: list[int], tokens: int) -> None:
        """An engine begins a step for an owner."""
        tree = self.tree_of[node]
        owner, slot = self.owner(name), tree % SLOTS
        self.tokens[node] = tokens
        self.require(self.chains.setdefault(node, chain) == chain, "a step continues the same chain in every life")
        again = self.begun[node] - self.failed[node]
        if self.store.slots[slot].owner == name:
            known = (tree, node) in self.store.data.steps
            self.require(not known, f"{node} is committed, and {name} has it sampled again")
            owner.begun[slot].add(node)
            lost = self.excused[node]
            self.require(again <= lost, f"{node} is paid for {again + 1} times, and was lost {lost} times")
        else:  # it does not know yet that it has lost the slot
            self.require(not owner.informed, f"{name} has heard that slot {slot} is lost, and has {node} sampled")
            self.excused[node] += 1
        self.begun[node] += 1

    def fail(self, node: int) -> None:
        """The engine has failed at a step: nobody gets it."""
        self.failed[node] += 1

    def come(self, name: str, node: int, now_s: float) -> None:
        """A shard has taken a step in, for a tree that grows."""
        self.owner(name).come.setdefault(node, now_s)

    def collected(self, name: str, commit: Commit, now_s: float) -> None:
        """A shard has made a commit of all that it had."""
        self.owner(name).collected[commit.sequence] = now_s

    def hold_ended(self, name: str, slots: Collection[int]) -> None:
        """Slots are not an owner's any more: what it had begun and is not committed is lost."""
        owner = self.owner(name)
        durable = max((sequence for writer, sequence in self.store.written if writer == name), default=0)
        since = owner.collected.get(durable, 0.0)
        for slot in slots:
            for node in owner.begun.pop(slot, set()):
                tree = self.tree_of[node]
                if (tree, node) not in self.store.data.steps:
                    self.excused[node] += 1
                    late = owner.come.pop(node, None)
                    ended = tree in self.store.data.results
                    fresh = ended or late is None or late >= since
                    self.require(fresh, f"{node} had come when {name} made its last commit, and is lost")

    def recovered(self) -> None:
        """Steps that were lost to damage since the last time are paid for again."""
        for (tree, node), _ in self.store.data.voided[self._voided :]:
            self.excused[node] += 1
            for owner in self.owners.values():
                owner.begun[tree % SLOTS].discard(node)
                owner.come.pop(node, None)
        self._voided = len(self.store.data.voided)

    def require(self, law: bool, otherwise: str) -> None:
        """Note it if a law is broken."""
        if not law:  # not raised: whoever calls may take it for the failure of an engine
            self.broken.append(otherwise)

    @property
    def twice(self) -> int:
        """Tokens that were paid for again, but for those at which an engine failed."""
        return sum(self.tokens[node] * max(0, count - 1 - self.failed[node]) for node, count in self.begun.items())

    @property
    def bound(self) -> int:
        """Tokens that may have been: those of all steps that were lost with a slot."""
        return sum(self.tokens[node] * count for node, count in self.excused.items())
