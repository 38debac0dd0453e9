"""Three regions on this machine: a Ray cluster of three labelled nodes, and Ramify on it. `make regions` runs it.

While it runs it takes commands, one a line:

    cut REGION     kill the region's node, with all that runs there
    back REGION    start it again
    engines        tell what each engine has done, and how many tokens of chains have moved
    quit           stop everything, as Ctrl-C does
"""

import argparse
import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GENERATOR = HERE.parent / "models" / "tiny24" / "generator"
LABEL = "ray.io/region"
HOME, *OTHERS = "eu-west", "eu-north", "us-east"  # the first has Ray's head, and can't be cut off
MEMORY_BYTES = 80 << 20  # of each node's object store
COMMANDS = "cut REGION | back REGION | engines | quit"
STOP_S = 30.0
LOOK_S = 0.5  # between two looks whether Ramify still runs
ANSWER_S = 5.0
# A node whose process is gone is given up within 2 s; one that stands still, or has no time on a busy machine, within 20.
SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}


class Regions:
    """A Ray cluster with a node in each region."""

    def __init__(self, folder: str) -> None:
        os.environ["RAY_TMPDIR"] = folder  # before Ray is imported: also of what it would write into /tmp/ray, for all to see
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        import ray.cluster_utils

        head = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False, "_system_config": SYSTEM}
        self._cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={**head, **_node(HOME)})
        self._nodes: dict[str, Any] = {name: self._cluster.add_node(wait=False, **_node(name)) for name in OTHERS}
        self._cluster.wait_for_nodes()
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self._cluster.address)

    def cut(self, region: str) -> str:
        """Kill a region's node and all that runs there."""
        if region not in self._nodes:
            why = "has Ray's head, which everything hangs on" if region == HOME else "is none of them"
            return f"{region or 'nothing'} {why}: it can be {' or '.join(self._nodes) or 'none now'}"
        self._cluster.remove_node(self._nodes.pop(region), allow_graceful=False)
        return f"{region} is cut off"

    def back(self, region: str) -> str:
        """Start a region's node again."""
        away = [name for name in OTHERS if name not in self._nodes]
        if region not in away:
            return f"{region or 'nothing'} is not away: {' or '.join(away) or 'none'} can come back"
        self._nodes[region] = self._cluster.add_node(**_node(region))
        return f"{region} is back"

    def engines(self) -> str:
        """What each engine has done since its process was started, and what has moved."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        from ramify.scheduler.actors.config import NAMESPACE

        def ask(name: str, call: Callable[[Any], Any]) -> Any:
            try:
                return ray.get(call(ray.get_actor(name, namespace=NAMESPACE)), timeout=ANSWER_S)
            except (RayError, GetTimeoutError, ValueError) as error:
                return error

        actors: Any = ray.util.list_named_actors(all_namespaces=True)
        names = sorted(actor["name"] for actor in actors if actor["name"].startswith("ramify:engine:"))
        lines = []
        for name in names:
            stats = ask(name, lambda actor: actor.stats.remote())
            away = isinstance(stats, Exception)
            told = (
                "is away"
                if away
                else f"{stats.rows_sampled:,} steps, {stats.tokens_sampled:,} tokens, {stats.rows_running} running"
            )
            lines.append(f"{name.removeprefix('ramify:engine:'):12} {told}")
        shards = ask("ramify:supervisor", lambda actor: actor.status.remote())
        moved = 0 if isinstance(shards, Exception) else sum(each.shell.moved_tokens for each in shards if each.shell)
        return "\n".join([*lines, f"{moved:,} tokens of chains have moved to another engine"])

    def stop(self) -> None:
        """End all of it."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def _node(region: str) -> dict[str, Any]:
    return {"num_cpus": 1, "object_store_memory": MEMORY_BYTES, "labels": {LABEL: region}}


def lines(up: "subprocess.Popen[bytes]") -> Iterator[str]:
    """What is typed, as long as Ramify runs."""
    typed = b""
    while up.poll() is None:
        if select.select([sys.stdin], [], [], LOOK_S)[0]:
            if not (more := os.read(sys.stdin.fileno(), 4096)):
                return
            *whole, typed = (typed + more).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)


def serve(regions: Regions, commands: Iterator[str]) -> None:
    """Do what is asked until nothing more is."""
    for line in commands:
        do, _, region = line.strip().partition(" ")
        if do in ("cut", "back"):
            print(getattr(regions, do)(region.strip()), flush=True)
        elif do == "engines":
            print(regions.engines(), flush=True)
        elif do == "quit":
            return
        elif do:
            print(COMMANDS, flush=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description="Three regions on this machine.", epilog="Other options are those of `ramify up`."
    )
    parser.add_argument("--home", type=Path, default=Path.home() / ".ramify" / "regions", help="folder for state and logs")
    parser.add_argument("--fleet", type=Path, default=HERE / "fleet.toml", help="which engines there are, see docs/regions.md")
    options, others = parser.parse_known_args()
    options.home.mkdir(parents=True, exist_ok=True)
    fleet = options.home / "fleet.toml"
    if not fleet.exists():  # it may have been edited
        fleet.write_text(options.fleet.read_text().replace("TINY24", str(GENERATOR)))
    folder = tempfile.mkdtemp(prefix="ramify-")  # a short path: Ray's sockets lie in it
    screen = os.dup(sys.stderr.fileno())
    with (options.home / "ray.log").open("ab") as log:  # Ray has much to say of a node that dies
        os.dup2(log.fileno(), sys.stderr.fileno())
    regions = Regions(folder)
    ramify = str(Path(sys.executable).with_name("ramify"))
    command = [ramify, "up", "--ray", regions.address, "--fleet", str(fleet), "--home", str(options.home), *others]
    # A session of its own: Ctrl-C is for this process, which then stops things in order.
    up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=screen, start_new_session=True)
    try:
        print(f"three regions: {', '.join([HOME, *OTHERS])}; the fleet is {fleet}, edit it as you like", flush=True)
        print(COMMANDS, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serve(regions, lines(up))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        up.send_signal(signal.SIGINT)
        try:
            up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()
        regions.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return up.returncode


if __name__ == "__main__":
    sys.exit(main())
