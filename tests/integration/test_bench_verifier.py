"""The bench of the verifier: real processes, as short as can be."""

import json

import pytest

from ramify.cli.bench.verifier import BATCHES, DEADLINE_MS, verifier


def test_the_bench_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    verifier(seconds=0.05, calls=1, models=False)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["scores_per_s"] == figures["batch"][str(BATCHES[0])]["scores_per_s"] > 0
    assert list(figures["batch"]) == [*map(str, BATCHES), "256, long"]
    assert all(each["client_cpu_s_per_100k"] > 0 for each in figures["batch"].values())
    assert 0 < figures["half_load"]["p50_ms"] <= figures["half_load"]["p99_ms"]
    twice = figures["twice_the_load"]
    assert twice["bears_scores_per_s"] > 0
    assert twice["goodput"] + twice["refused"] + twice["expired"] > 0
    assert twice["longest_ms"] < 20 * DEADLINE_MS  # nothing hangs
