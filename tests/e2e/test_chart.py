"""`helm test` of the chart, against a system that runs."""

from pathlib import Path

from tests.e2e.conftest import Up
from tests.helm.chart import pods, render
from tests.helm.processes import Place
from tests.helm.test_objects import MATRIX


def test_the_test_of_the_chart_solves_its_puzzle(up: Up, tmp_path: Path) -> None:
    objects = render(*MATRIX["plain"])
    test = next(each for each in pods(objects) if each.labels["app.kubernetes.io/component"] == "test")
    script, *arguments = test.container["args"]
    done = Place(tmp_path, objects, {}).bash(test, script, *arguments, RAMIFY_ADDRESS=up.address)
    assert done.returncode == 0, done.stderr
    assert "4 5 6 10" in done.stdout
