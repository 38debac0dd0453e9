"""What befalls a simulated cluster: drawn from one seed, so that the seed brings it back."""

import random
from dataclasses import dataclass, field

LEASES_MS = (300, 600, 1200)
MANY = ("before beat", "after beat", "before open_jobs", "after open_jobs")  # points that are passed all the time


@dataclass(frozen=True)
class Storm:
    """How a cluster is set up, and what goes wrong in it. Shares are chances of each call or moment; rates are per second."""

    shards: int = 1
    lease_ms: int = 600
    flush_ms: int = 20
    snapshot_steps_min: int = 4
    trees_max: int = 4096
    step_ms_max: int = 20  # an engine's or the verifier's answer takes 1 to so many
    batch_max: int = 4  # steps that an engine answers at once
    store_ms_max: int = 4  # a call's way to the store, and its way back, take up to so many
    clock_skew: float = 0.0  # a process's clock goes up to this share too fast or too slow
    engine_fails: float = 0.0
    verifier_away: float = 0.0
    store_fails: float = 0.0  # a call gets lost, or its answer, or it comes late
    crash: float = 0.0  # at each point before and after a call of the store; of beats and looks, which are many, a tenth
    crash_at: tuple[str, int] | None = None  # at this point, when it comes for the n-th time
    kills: float = 0.0  # rate, as are those that follow: a process dies
    pauses: float = 0.0  # a process stands still for up to two leases
    twins: float = 0.0  # a process is started anew though it lives
    outages: float = 0.0  # the store does not answer for up to a lease
    drains: float = 0.0  # a shard is told to end, and comes back later
    clock_jumps: float = 0.0  # the store's clock is set
    damages: float = 0.0  # something in the store is damaged
    cuts: float = 0.0  # the region where engines cost least is cut off for up to a lease
    decoys: int = 0  # small jobs that come at some time, of which every other is cancelled at some time
    stays_dead: float = 0.2  # share of shards that are not started again until the storm is over
    calm_after_s: float = 4.0

    @property
    def kinds(self) -> list[str]:
        """What happens at a rate."""
        return [
            name
            for name in ("kills", "pauses", "twins", "outages", "drains", "clock_jumps", "damages", "cuts")
            if getattr(self, name)
        ]


CALM = Storm()


@dataclass
class Draw:
    """Chooses a storm."""

    seed: int
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"storm {self.seed}")

    def storm(self) -> Storm:
        """Of the many things that can go wrong a few at a time, so that each of them is met in many company."""
        chance = self.chance

        def maybe(share: float, low: float, high: float) -> float:
            return chance.uniform(low, high) if chance.random() < share else 0.0

        return Storm(
            shards=chance.choice((1, 2, 2, 3, 4)),
            lease_ms=chance.choice(LEASES_MS),
            flush_ms=chance.choice((5, 20, 60)),
            snapshot_steps_min=chance.choice((1, 2, 4, 8, 10**6)),
            trees_max=chance.choice((1, 2, 4096)),
            step_ms_max=chance.choice((5, 20, 60, 150)),
            batch_max=chance.choice((1, 3, 100)),
            store_ms_max=chance.choice((1, 4, 30)),
            clock_skew=maybe(0.4, 0.0, 0.3),
            engine_fails=maybe(0.3, 0.02, 0.2),
            verifier_away=maybe(0.2, 0.02, 0.2),
            store_fails=maybe(0.4, 0.02, 0.2),
            crash=maybe(0.5, 0.005, 0.1),
            kills=maybe(0.4, 0.5, 6),
            pauses=maybe(0.4, 0.5, 6),
            twins=maybe(0.25, 0.5, 4),
            outages=maybe(0.2, 0.5, 3),
            drains=maybe(0.3, 0.5, 4),
            clock_jumps=maybe(0.2, 0.5, 4),
            damages=maybe(0.25, 1, 10),
            decoys=chance.choice((0, 0, 0, 1, 2)),
            stays_dead=chance.choice((0.0, 0.2, 0.6)),
            calm_after_s=chance.choice((1.0, 2.0, 4.0)),
            cuts=maybe(0.25, 0.5, 4),
        )
