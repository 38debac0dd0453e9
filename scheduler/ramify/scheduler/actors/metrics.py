"""What shards and engines tell Prometheus, through Ray: docs/metrics.md has it all.

It is told now and then, from what they know anyway: a million steps cost as much as one. No tag holds a job's or a tree's id.
"""

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from ramify.scheduler.actors.lanes import QUEUE_FACTOR, Queued
from ramify.scheduler.actors.meters import Counted, Meters, Timed
from ramify.scheduler.engines.base import EngineStats, ModelInfo

if TYPE_CHECKING:
    from ramify.scheduler.actors.config import EngineConfig
    from ramify.scheduler.actors.status import ShellStatus

TENANTS_MAX = 200  # that are told of by name, those that were seen first
OTHERS = "others"  # together
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
NIL = 5e-324  # Ray counts no zeros, and a rate needs to have seen one: this and 1 is 1

COUNTED: Mapping[Counted, tuple[str, tuple[str, ...]]] = {
    "steps": ("Steps committed", ()),
    "tokens": ("Tokens committed", ()),
    "trees_done": ("Trees that have ended", ("outcome",)),
    "retries": ("Steps that were lost and asked for again", ()),
    "lost_steps": ("Steps that engines or verifiers did not answer, withdrawn ones included", ()),
    "takeovers": ("Slots taken over from shards that had not given them up", ()),
    "store_failures": ("Commits and beats that the store failed at", ()),
    "score_calls": ("Calls of the verifier that have ended", ("model", "outcome")),
    "tenant_tokens": ("Tokens committed, by who pays for them", ("tenant",)),
}
TIMED: Mapping[Timed, tuple[str, tuple[str, ...]]] = {
    "commit_seconds": ("How long commits took", ()),
    "score_call_seconds": ("How long calls of the verifier took", ("model",)),
    "recovery_seconds": ("How long it took to bring back what was committed of slots that came", ()),
}
WAITED_FOR = ("engines", "verifier", "store")  # told even while nothing waits
EVER: tuple[Counted, ...] = ("steps", "tokens", "retries", "lost_steps", "takeovers", "store_failures")  # told from the start


class ShardMetrics:
    """Those of a shard."""

    def __init__(self, shard: int) -> None:
        def gauge(name: str, what: str, *tags: str) -> Gauge:
            return Gauge(f"ramify_{name}", what, ("shard", *tags))

        self._shard = {"shard": str(shard)}
        self._counters = {name: Counter(f"ramify_{name}", what, ("shard", *tags)) for name, (what, tags) in COUNTED.items()}
        self._histograms = {
            name: Histogram(f"ramify_{name}", what, SECONDS, ("shard", *tags)) for name, (what, tags) in TIMED.items()
        }
        self._restarts = Counter("ramify_shell_restarts", "Shells that have died and were started anew", ("shard",))
        self._fenced = Counter("ramify_fenced", "Shells that have ended because another shard has their slots", ("shard",))
        self._moved = Counter("ramify_moved_tokens", "Tokens of chains that were prefilled again elsewhere", ("shard",))
        self._working = gauge("shard_working", "1: it samples and scores; 0: it is paused, or stopped")
        self._slots = gauge("slots", "Slots held")
        self._settling = gauge("settling_slots", "Of them, those of which not all is here yet")
        self._trees = gauge("trees", "Live trees")
        self._chains = gauge("chains", "Live chains")
        self._queued = gauge("queued_steps", "Steps that wait to be sent to an engine", "region")
        self._sent = gauge("sent_steps", "Steps that are at an engine", "region")
        self._credits = gauge("credits", "Steps that engines would still take", "region")
        self._engines = gauge("engines", "Engines", "region", "state")
        self._queue_age = gauge("queue_age_seconds", "How long the oldest step that waits to be sent has waited")
        self._unscored = gauge("unscored_chains", "Chains that wait for the verifier, or are there")
        self._away = gauge("verifier_models_away", "Models of the verifier that are away or overloaded")
        self._waiting = gauge("waiting_chains", "Chains that wait for what is not there", "what")
        self._uncommitted = gauge("uncommitted_steps", "Steps that are not durable yet")
        self._commit_lag = gauge("commit_lag_seconds", "How long the commit that is being written has taken")
        self._silent = gauge("store_silent_seconds", "Since the store was last heard of")
        self._full = gauge("store_full", "1: a commit waits for room on the store's disk")
        self._tenant_trees = gauge("tenant_trees", "Live trees of a tenant", "tenant")
        self._tenant_queued = gauge("tenant_queued_steps", "Its steps that wait to be sent to an engine", "tenant")
        self._tenant_age = gauge("tenant_queue_age_seconds", "How long the oldest of them has waited", "tenant")
        self._tenant_today = gauge("tenant_tokens_today", "What it has spent since 00:00 UTC", "tenant")
        self._tenant_per_day = gauge("tenant_tokens_per_day_max", "What it may spend in a day", "tenant")
        self._told_moved, self._named = 0, set[str]()
        for name in EVER:
            self._counters[name].inc(NIL, self._shard)
        for counter in (self._restarts, self._fenced, self._moved):
            counter.inc(NIL, self._shard)

    def restarted(self, *, fenced: bool) -> None:
        """Its shell has died; whether another shard has its slots."""
        self._restarts.inc(1, self._shard)
        if fenced:
            self._fenced.inc(1, self._shard)

    def tell(self, status: "ShellStatus | None", meters: Meters, regions: Mapping[str, str]) -> None:
        """Tell how it stands; `regions` are those of the engines by their names. Without a shell it only does not work."""
        self._tell_meters(meters)
        self._set(self._working, status is not None and status.state == "working")
        if status is None:
            return
        self._set(self._slots, status.slots)
        self._set(self._settling, status.settling)
        self._set(self._trees, status.trees)
        self._set(self._chains, status.chains)
        self._set(self._queue_age, max((queued.age_s for queued in status.queued.values()), default=0.0))
        self._set(self._unscored, status.unscored_chains)
        self._set(self._away, status.models_away)
        self._set(self._uncommitted, status.uncommitted_steps)
        self._set(self._commit_lag, status.commit_lag_s)
        self._set(self._silent, status.store_silent_s)
        self._set(self._full, status.store_full)
        self._tell_engines(status, regions)
        self._tell_tenants(status)
        waiting = Tally[str](dict.fromkeys(WAITED_FOR, 0))
        for wait in status.waits:
            waiting[wait.what] += wait.count
        for what, count in waiting.items():
            self._set(self._waiting, count, what=what)
        if status.moved_tokens > self._told_moved:
            self._moved.inc(status.moved_tokens - self._told_moved, self._shard)
        self._told_moved = status.moved_tokens

    def _set(self, gauge: Gauge, value: float, **tags: str) -> None:
        gauge.set(value, self._shard | tags)

    def _tell_meters(self, meters: Meters) -> None:
        for (what, values), amount in meters.take_counts().items():
            tags = dict(zip(COUNTED[what][1], values, strict=True))
            if "tenant" in tags:
                tags["tenant"] = self._name(tags["tenant"])
            self._counters[what].inc(amount or NIL, self._shard | tags)
        for (kind, values), times in meters.take_times().items():
            tags = self._shard | dict(zip(TIMED[kind][1], values, strict=True))
            for seconds in times:
                self._histograms[kind].observe(seconds, tags)

    def _name(self, tenant: str) -> str:
        """What a tenant is told as. Who has a name keeps it: a counter must not change its own."""
        if len(self._named) < TENANTS_MAX:
            self._named.add(tenant)
        return tenant if tenant in self._named else OTHERS

    def _tell_tenants(self, status: "ShellStatus") -> None:
        told: defaultdict[Gauge, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for tenant, standing in sorted(status.tenants.items(), key=lambda item: -item[1].tokens_today):
            told[self._tenant_today][self._name(tenant)] += standing.tokens_today
            if standing.tenant.tokens_per_day_max is not None and tenant in self._named:
                told[self._tenant_per_day][tenant] = standing.tenant.tokens_per_day_max
        for tenant, trees in status.tenant_trees.items():
            queued, name = status.queued.get(tenant, Queued(0, 0.0)), self._name(tenant)
            told[self._tenant_trees][name] += trees
            told[self._tenant_queued][name] += queued.steps
            told[self._tenant_age][name] = max(told[self._tenant_age][name], queued.age_s)
        for gauge, found in told.items():
            for name, amount in found.items():
                self._set(gauge, amount, tenant=name)

    def _tell_engines(self, status: "ShellStatus", regions: Mapping[str, str]) -> None:
        queued, sent, free, states = Tally[str](), Tally[str](), Tally[str](), Tally[tuple[str, str]]()
        for lane in status.lanes:
            region = regions.get(lane.engine, "")
            queued[region] += lane.waiting
            sent[region] += lane.under_way
            free[region] += max(0, QUEUE_FACTOR * lane.slots - lane.under_way) if lane.alive else 0
            states[region, "alive"] += lane.alive
            states[region, "away"] += not (lane.alive or lane.leaves)
        for gauge, found in ((self._queued, queued), (self._sent, sent), (self._credits, free)):
            for region, steps in found.items():
                self._set(gauge, steps, region=region)
        for (region, state), count in states.items():
            self._set(self._engines, count, region=region, state=state)


class EngineMetrics:
    """Those of an engine."""

    COUNTED: Sequence[tuple[str, str, str]] = (  # name, field of `EngineStats`, what it is
        ("engine_steps", "rows_sampled", "Steps sampled, whoever still wanted them"),
        ("engine_tokens", "tokens_sampled", "Tokens sampled"),
        ("engine_prefilled_tokens", "tokens_prefilled", "Tokens prefilled"),
        ("engine_cached_tokens", "tokens_cached", "Tokens that needed no prefill, where the engine knows"),
        ("engine_prefix_hits", "prefix_hits", "Chains that needed no prefill of their own"),
        ("engine_prefix_misses", "prefix_misses", "Chains that did"),
        ("engine_slot_busy_seconds", "slot_busy_s", "Sum over slots of the time that they were in use"),
    )

    def __init__(self, config: "EngineConfig", info: ModelInfo) -> None:
        tags = {"engine": config.name, "region": config.region, "model": info.name}

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"ramify_engine_{name}", what, (*tags,)).set_default_tags(tags)

        self._slots, self._info = gauge("slots", "Sequences that it runs at once"), info
        self._running = gauge("running_steps", "Steps that it runs")
        self._waiting = gauge("waiting_steps", "Steps that wait at its door")
        self._counters = [
            (Counter(f"ramify_{name}", what, (*tags,)).set_default_tags(tags), of) for name, of, what in self.COUNTED
        ]
        self._calls = Histogram("ramify_engine_call_seconds", "How long batches took", SECONDS, (*tags,)).set_default_tags(tags)
        self._told: EngineStats | None = None
        for counter, _ in self._counters:
            counter.inc(NIL)

    def called(self, seconds: float) -> None:
        """A batch has taken so long."""
        self._calls.observe(seconds)

    def tell(self, stats: EngineStats) -> None:
        """Tell how it stands."""
        self._slots.set(self._info.slots)
        self._running.set(stats.rows_running)
        self._waiting.set(stats.rows_waiting)
        for counter, of in self._counters:
            more = getattr(stats, of) - (getattr(self._told, of) if self._told else 0)
            if more > 0:
                counter.inc(more)
        self._told = stats
