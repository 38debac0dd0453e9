"""The bench of the gateway: a real process with TLS and keys, as short as can be."""

import asyncio

from ramify.cli.bench.gateway import Shape, measure, summary


def test_the_bench_measures_a_gateway_with_tls_and_keys() -> None:
    found = asyncio.run(measure(Shape(seconds=2.0, jobs=6, watches=4, calls=2, clients=1), tenants=3, store=None))
    assert list(found) == ["submits", "reads", "watches"]
    assert all(each["calls_per_s"] > 0 and each["gateway_cpu_ms_per_call"] > 0 for each in found.values())
    assert all(0 < each["p50_ms"] <= each["p95_ms"] for each in found.values())
    figures = summary({"with TLS and keys": found, "in the clear": found})
    assert figures["submits_per_s"] == found["submits"]["calls_per_s"]
    assert figures["watch_p95_ms"] == found["watches"]["p95_ms"]
    assert (figures["open_watches"], figures["reads_per_s_ratio"]) == (4, 1)
