"""`python -m tests.faults.cluster SETUP`: a Ray cluster of several nodes on this machine, and a whole system on it.

A process of its own, so that Ray does not live in pytest's. It takes requests from standard input and answers them on standard
output, each a line of JSON; when its input closes it stops everything in order and says how that went.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

HEAD = "head"
LABEL = "ramify-test/node"
WATCH_S = 0.25
START_S = 120.0
ANSWER_S = 5.0  # in which an actor says how it stands; it may stand still
DRAIN_S = 15.0
MEMORY_BYTES = 80 << 20  # of each node's object store
# A node whose process is gone is given up within 2 s; one that stands still, or has no time on a busy machine, within 20.
SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What is to run."""

    home: str  # state and logs
    ray_folder: str  # has a short path: Ray's sockets lie in it
    store_url: str
    engine: str  # spec of each engine
    verifier_model: str  # NAME=SPEC
    nodes: tuple[str, ...] = ("a",)  # beside the head; the first shard and engine belong on the first, and so on; then the head
    shards: int = 2
    engines: int = 2
    lease_ms: int = 3000
    listen: str = "127.0.0.1:0"  # of the gateway


class Cluster:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._supervisor: Any = None
        self._nodes: dict[str, Any] = {}  # by name
        self._children: list[Any] = []
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Start everything; returns when jobs can be submitted."""
        # Set before Ray is imported: it reads them once.
        os.environ["RAY_TMPDIR"] = self._setup.ray_folder  # also of what it would write into /tmp/ray, for all to see
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        import ray.cluster_utils

        from ramify.local.child import Child
        from ramify.scheduler.actors.config import EngineConfig, FleetConfig, SystemConfig
        from ramify.scheduler.actors.limits import ShellLimits
        from ramify.scheduler.actors.supervisor import start_supervisor

        setup, home = self._setup, Path(self._setup.home)
        verifier = Child("ramify.verifier", ["--model", setup.verifier_model], "127.0.0.1:0", home)
        gateway = Child("ramify.gateway", ["--store", setup.store_url], setup.listen, home)
        self._children = [verifier, gateway]
        for child in self._children:
            child.start()
        head = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False, "_system_config": SYSTEM}
        self._cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={**head, **_node(HEAD)})
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        for child in self._children:
            child.wait_ready()
        labels = [{LABEL: name} for name in (*setup.nodes, HEAD)]
        engines = [EngineConfig(str(i), setup.engine, labels=labels[i % len(labels)], strays=True) for i in range(setup.engines)]
        shard_labels = tuple(labels[i % len(labels)] for i in range(setup.shards))
        self._supervisor = start_supervisor(
            SystemConfig(
                setup.store_url,
                verifier.address,
                FleetConfig(tuple(engines)),
                setup.shards,
                ShellLimits(lease_ms=setup.lease_ms),
                shard_labels=shard_labels,
                cluster=os.environ.get("RAY_CLUSTER_NAME", ""),  # as KubeRay says it
            )
        )
        ray.get(self._supervisor.status.remote(), timeout=START_S)  # it is on the head, for there is no other node yet
        for name in setup.nodes:
            self._nodes[name] = self._cluster.add_node(wait=False, **_node(name))
        self._cluster.wait_for_nodes()
        ray.get(self._supervisor.start.remote(), timeout=START_S)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            for child in self._children:
                child.revive()

    def processes(self) -> dict[str, Any]:
        """Addresses, and who runs as which process: actors and nodes by name, children by theirs."""
        import ray
        from ray._private.state import actors

        places = {node["NodeID"]: node["Labels"].get(LABEL, "") for node in ray.nodes()}
        return {
            "gateway": self._children[1].address,
            "children": {child.log.stem: child.pid for child in self._children},
            "actors": {
                actor["Name"]: {"pid": actor["Pid"], "node": places.get(actor["Address"]["NodeID"], ""), "state": actor["State"]}
                for actor in actors().values()
                if actor["State"] != "DEAD"
            },
            "nodes": {name: _raylet(node) for name, node in {HEAD: self._cluster.head_node, **self._nodes}.items()},
        }

    def stats(self) -> dict[str, Any]:
        """What each engine has done since its process was started, and how each shard stands; None: it can't be asked."""
        import ray
        from ray.exceptions import RayError

        from ramify.scheduler.actors.config import NAMESPACE

        found: dict[str, Any] = {"engines": {}, "shards": {}}
        for name, actor in self.processes()["actors"].items():
            _, kind, number = name.split(":") if name.count(":") == 2 else ("", "", "")
            if kind not in ("engine", "shard") or actor["state"] != "ALIVE":
                continue
            handle = ray.get_actor(name, namespace=NAMESPACE)
            reference = handle.stats.remote() if kind == "engine" else handle.status.remote()
            with contextlib.suppress(RayError):  # it has just died, or stands still
                told: Any = ray.get(reference, timeout=ANSWER_S)
                found[f"{kind}s"][number] = {**asdict(told), "pid": actor["pid"]}
        return found

    def scale(self, shards: int) -> None:
        """Have so many shards."""
        import ray

        ray.get(self._supervisor.scale.remote(shards), timeout=START_S)

    def forsake(self, actor: str) -> None:
        """Kill an actor, and have Ray start it no more."""
        import ray

        from ramify.scheduler.actors.config import NAMESPACE

        ray.kill(ray.get_actor(actor, namespace=NAMESPACE), no_restart=True)

    def replace(self, node: str) -> None:
        """Start a node anew whose processes are dead."""
        dead = self._nodes.pop(node)
        self._cluster.worker_nodes.discard(dead)
        dead.kill_all_processes(check_alive=False, allow_graceful=False)
        self._nodes[node] = self._cluster.add_node(**_node(node))

    def stop(self) -> dict[str, Any]:
        """Stop everything in order.

        Returns:
            Whether the shards could commit all, how long that took, and the `stats` at the end.
        """
        import ray
        from ray.exceptions import RayError

        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        drained, began_s, stats = False, time.monotonic(), {}
        with contextlib.suppress(RayError):
            drained = ray.get(self._supervisor.drain.remote(), timeout=DRAIN_S)
            stats = self.stats()
        drain_s = time.monotonic() - began_s
        ray.shutdown()
        for node in self._nodes.values():
            self._cluster.worker_nodes.discard(node)
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        self._cluster.shutdown()
        for child in reversed(self._children):
            child.stop()
        shutil.rmtree(self._setup.ray_folder, ignore_errors=True)  # also of a test that was killed
        return {"drained": drained, "drain_s": drain_s, "stats": stats}

    def serve(self, requests: TextIO, answer: Callable[[Any], None]) -> None:
        """Do what is asked until nothing more is."""
        for line in requests:
            request = json.loads(line)
            try:
                answer({"is": getattr(self, request.pop("do"))(**request)})
            except Exception as error:  # the test is to hear of it
                answer({"error": repr(error)})


def _node(name: str) -> dict[str, Any]:
    return {"num_cpus": 1, "object_store_memory": MEMORY_BYTES, "labels": {LABEL: name}}


def _raylet(node: Any) -> int | None:
    process = node.all_processes["raylet"][0].process
    return process.pid if process.poll() is None and psutil.pid_exists(process.pid) else None


def main() -> None:
    """See the module."""
    # Ray prints, and so may others: what is meant for the test goes past them.
    mine = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(what: Any) -> None:
        mine.write(json.dumps(what) + "\n")

    cluster = Cluster(Setup(**json.loads(sys.argv[1])))
    cluster.start()
    try:
        answer({"is": cluster.processes()})
        cluster.serve(sys.stdin, answer)
    finally:
        answer({"is": cluster.stop()})


if __name__ == "__main__":
    main()
