"""What a running system tells Prometheus is what docs/metrics.md says; boards and alerts are held against that page."""

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ramify.client import Client, NotFound
from tests.e2e.conftest import Up
from tests.metrics import documented
from tests.waiting import until

OF_RAY = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}  # and those that begin so:
OF_TELEMETRY = "otel_scope"
ONLY_TOGETHER = {"le"}
WITH_TLS = {"ramify_certificate_expires_timestamp_seconds"}  # see tests/unit/gateway/test_metrics.py


def session(up: Up) -> Path:
    """Ray's folder."""
    commands = [word for process in up.processes() for word in process.cmdline()]
    return next(Path(word.partition("=")[2]) for word in commands if word.startswith("--session-dir="))


def addresses(up: Up) -> list[str]:
    """Where the gateway, the verifier and Ray's node tell."""
    logs = [(up.home / f"{name}.log").read_text() for name in ("gateway", "verifier")]
    found = [re.findall(r"metrics are at http://(\S+)/metrics", log)[-1] for log in logs]
    ports = [file.read_text() for file in session(up).glob("metrics_export_port_*")]
    return [*found, *(f"127.0.0.1:{port}" for port in ports)]


def told(address: str) -> dict[str, set[str]]:
    """The labels of each metric that is told now, without those that Ray adds."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://{address}/metrics").text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        added = {label for label in labels if label in OF_RAY | ONLY_TOGETHER or label.startswith(OF_TELEMETRY)}
        if family.samples:
            found[name] = labels - added
    return found


def test_a_system_tells_what_the_page_says_and_nothing_else(up: Up, puzzles: list[str]) -> None:
    most = up.ramify("tenants", "set", "default", "--tokens-per-day-max", "1000000000", "--home", str(up.home))
    assert most.returncode == 0, most.stderr
    seen: dict[str, set[str]] = {}
    wanted = {name: labels for name, labels in documented().items() if "ramify_" in name and name not in WITH_TLS}
    everything = documented().keys() - WITH_TLS  # Ray's own, too, and those of processes
    with Client(up.address) as client:
        job = client.submit(puzzles, n=4, max_steps=8, max_step_tokens=32, checker="countdown")
        watch = client.watch(job.job_id)
        with pytest.raises(NotFound):
            client.job("unknown")

        def all_seen() -> bool:
            next(watch, None)
            for address in addresses(up):
                seen.update(told(address))
            return everything <= seen.keys()

        try:
            until(all_seen)
        except AssertionError as error:
            raise AssertionError(f"nobody tells {sorted(everything - seen.keys())}") from error
        finally:
            client.cancel(job.job_id)
    ours = {name: labels for name, labels in seen.items() if "ramify_" in name}
    assert sorted(ours.keys() - wanted.keys()) == [], "docs/metrics.md has to say what these tell"
    assert {name: sorted(labels) for name, labels in ours.items() if labels != wanted[name]} == {}
    assert not {"job", "job_id", "tree", "tree_id"} & {label for labels in ours.values() for label in labels}


def test_actors_log_as_services_do(up: Up) -> None:
    """Ray itself would show warnings alone."""
    lines = [line for file in session(up).glob("logs/worker-*.err") for line in file.read_text().splitlines()]
    assert any(" INFO ramify.scheduler.actors.shell: shard:0@" in line for line in lines), lines
