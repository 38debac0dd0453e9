"""What an operator sees of a verifier, for Prometheus. Counted by batch and by request, never by chain."""

from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ramify.verifier.columns import ChainFault

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS = tuple(float(4**power) for power in range(2, 12))


class Metrics:
    """All that a verifier tells, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"ramify_verifier_{name}", what, ("model", *labels), registry=registry)

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"ramify_verifier_{name}", what, ("model",), buckets=buckets, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"ramify_verifier_{name}", what, ("model",), registry=registry)

        self.chains = counter("chains", 'Chains answered; outcome is "scored", or what is wrong with them', "outcome")
        self.tokens = counter("tokens", "Tokens computed")
        self.batch_seconds = histogram("batch_seconds", "How long the model took for a batch", SECONDS)
        self.batch_tokens = histogram("batch_tokens", "Tokens of a batch", TOKENS)
        self.queue_chains = gauge("queue_chains", "Chains that wait for the model")
        self.queue_seconds = histogram("queue_seconds", "How long requests waited for the model", SECONDS)
        self.expired_chains = counter("expired_chains", "Chains dropped because their deadline passed")
        self.failed_batches = counter("failed_batches", "Batches that the model failed on")
        self.remembered_chains = counter("remembered_chains", "Chains answered from memory")
        self.shared_chains = counter("shared_chains", "Chains that were being computed for others already")
        self.memory_bytes = gauge("memory_bytes", "Bytes of chains and scores that are remembered")
        self.call_seconds = Histogram(
            "ramify_verifier_call_seconds", "How long calls took", ("method", "code"), buckets=SECONDS, registry=registry
        )


class ModelMetrics:
    """What one model tells."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._chains, self._model = metrics.chains, model
        self._tokens = metrics.tokens.labels(model)
        self._batch_seconds = metrics.batch_seconds.labels(model)
        self._batch_tokens = metrics.batch_tokens.labels(model)
        self.queue_chains = metrics.queue_chains.labels(model)
        self.queue_seconds = metrics.queue_seconds.labels(model)
        self.expired_chains = metrics.expired_chains.labels(model)
        self.failed_batches = metrics.failed_batches.labels(model)
        self.remembered_chains = metrics.remembered_chains.labels(model)
        self.shared_chains = metrics.shared_chains.labels(model)
        self.memory_bytes = metrics.memory_bytes.labels(model)

    def batch(self, tokens: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self._tokens.inc(tokens)
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)

    def count(self, chains: int, faults: Sequence[ChainFault]) -> None:
        """Count chains that were answered."""
        self._chains.labels(self._model, "scored").inc(chains - len(faults))
        for kind, number in Tally(fault.error for fault in faults).items():
            self._chains.labels(self._model, kind.name.lower()).inc(number)
