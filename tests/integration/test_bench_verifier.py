"""The bench of the verifier: a real process, as short as can be."""

import json

import pytest

from ramify.cli.bench.verifier import BATCHES, verifier


def test_the_bench_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    verifier(seconds=0.01, calls=1)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["scores_per_s"] == figures["batch"][str(BATCHES[0])]["scores_per_s"] > 0
    assert list(figures["batch"]) == [*map(str, BATCHES), "objects"]
    assert all(each["client_cpu_s_per_100k"] > 0 for each in figures["batch"].values())
