"""`ramify up`: Ray with its dashboard, supervisor, shards and engines, the verifier, the gateway and SQLite, on this machine."""

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from filelock import FileLock, Timeout

from ramify.local import served
from ramify.local.child import Child
from ramify.local.errors import AlreadyRunning, LocalError, Misconfigured, StartFailed
from ramify.local.models import tiny24
from ramify.store.location import VARIABLE
from ramify.tls import ClientTls, ServerTls
from ramify.watched import Watched

log = logging.getLogger(__name__)

WATCH_S = 0.5
DRAIN_S = 8.0  # for the shards, who cut themselves short before
RAY_END_S = 1.0
APPLY_S = 5.0  # between two times that a supervisor is told of the fleet
CONNECT_S = 5.0  # to a Ray cluster that runs already
START_S = 120.0
LOAD_S = 1800.0  # where a GPU has to be filled first
LISTEN = "127.0.0.1:8700"
DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """What a local system consists of."""

    home: Path  # state and logs; one system at a time
    listen: str = LISTEN  # of the gateway
    store_url: str = ""  # empty: SQLite in `home`
    engines: tuple[str, ...] = ()  # see `engines.registry.load_engine`; empty: tiny24, or what `fleet` says
    fleet: Path | None = None  # a file, see `actors.fleet`; it is read again whenever it changes
    ray: str = ""  # address of a Ray cluster that runs already; empty: one of our own
    verifier_models: tuple[str, ...] = ()  # NAME=FOLDER; empty: tiny24-prm, or a simulated one where all engines are
    verifier: str = ""  # addresses of verifiers that run already, see `VerifierClient`; empty: one of our own
    verifier_tls: ClientTls | None = None  # of those; None: no TLS
    shards: int = 1
    dashboard: bool = True
    lease_s: float = 15.0  # a shard that was not heard of for so long loses its slots to others
    retain_days: float | None = None  # jobs that ended longer ago are deleted; None: none is
    trees_max: int = 4096  # open at once in a shard
    tls: ServerTls | None = None  # of the gateway; None: no TLS
    serve: bool = False  # supervisor and shards belong to applications of Ray Serve
    http: str = ""  # HOST:PORT of the HTTP surface, which is such an application too; empty: none
    keys: bool = False  # the gateway lets in only callers with an API key
    work: Callable[[Any], Any] | None = None  # see `SystemConfig.work`; None: as it is there


class LocalSystem:
    """A context manager: everything runs inside, nothing is left behind outside. Jobs stay in the store."""

    def __init__(self, config: LocalConfig, say: Callable[[str], None] = log.info) -> None:
        self.config = config
        self.address = ""  # of the gateway
        self.dashboard_url = ""
        self._say = say
        self._lock = FileLock(config.home / "lock")
        self._children: list[Child] = []
        self._supervisor: Any = None
        self._served = False  # whether Serve looks after it
        self._fleet_file: Watched[Any] | None = None  # what `config.fleet` says
        self._applying: Any = None  # what the supervisor says of it
        self._applied_s = 0.0  # when it was told last
        self._ray_folder: Path | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="children")
        self.away: list[str] = []  # engines that were not there when the others were, and why; they are looked for
        self.failure: str = ""  # why a part could not be kept alive

    def __enter__(self) -> Self:
        self.config.home.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise AlreadyRunning(
                f"a system already runs on {self.config.home}: use it with `ramify submit`, stop it with Ctrl-C where it was "
                "started, or start another one with --home and --listen"
            ) from error
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        config, home = self.config, self.config.home
        if config.fleet is not None:  # what is wrong is told before anything starts
            self._fleet_file = fleet_file(config.fleet)
        specs = [engine.spec for engine in self._fleet_file.value.engines] if self._fleet_file else self._engines
        if not config.ray:  # else what they name is on other machines
            check_engines(specs)
        if config.http:
            served.check_http(config.http, config.tls)
        store_url = config.store_url or f"sqlite+aiosqlite:///{home.absolute() / 'state.db'}"
        gateway = Child("ramify.gateway", self._gateway_flags(), config.listen, home, environment={VARIABLE: store_url})
        self._children = [gateway]
        verifier = None if config.verifier else self._verifier(specs)
        self._children += [verifier] if verifier else []
        for child in self._children:
            child.start()
        self._start_ray()
        for child in self._children:
            child.wait_ready()
        self.address = gateway.address
        if verifier is not None:
            self._say(f"verifier on {verifier.address}, log {verifier.log}")
        self._start_actors(store_url, verifier.address if verifier else config.verifier)
        self._watcher.start()

    def _gateway_flags(self) -> list[str]:
        tls = self.config.tls
        files = {"--tls-cert": tls.certificate, "--tls-key": tls.key, "--tls-client-ca": tls.client_ca} if tls else {}
        given = [part for flag, file in files.items() if file is not None for part in (flag, str(file.absolute()))]
        return [*given, *(["--keys"] if self.config.keys else [])]

    def _verifier(self, specs: Sequence[str]) -> Child:
        """A verifier with the models that fit engines of these specs."""
        models = self.config.verifier_models or (default_verifier(specs),)
        flags = [flag for model in models for flag in ("--model", model)]
        ready_s = LOAD_S if self.config.verifier_models else START_S
        return Child(
            "ramify.verifier", [*flags, "--rule", "countdown", "--rule", "math"], "127.0.0.1:0", self.config.home, ready_s
        )

    def _start_ray(self) -> None:
        # Set before Ray is imported: it reads them once.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if self.config.ray:
            self._join_ray(self.config.ray)
            return
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's ports and dashboard are for this user alone
        os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")  # vLLM's processes end with their engine's
        import ray

        # Ray's sockets lie in its folder, and a socket's path has a bound of 107 characters: `home` may be too deep.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="ramify-"))
        context = ray.init(
            address="local",
            include_dashboard=self.config.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self._ray_folder),
        )
        if context.dashboard_url:
            self.dashboard_url = f"http://{context.dashboard_url}"
            self._say(f"Ray dashboard on {self.dashboard_url}")

    def _join_ray(self, address: str) -> None:
        import ray

        host, _, port = address.rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise StartFailed(
                f"no Ray cluster answers on {address!r} ({error}): say HOST:PORT of its head, as `ray start` does"
            ) from error
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StartFailed(f"no Ray cluster answers on {address}: {str(error).strip().splitlines()[0]}") from error
        from ramify.scheduler.actors.named import SUPERVISOR, actor_names, end_actors

        names = actor_names()
        if SUPERVISOR in names:
            ray.shutdown()
            raise AlreadyRunning(f"a system already runs on the Ray cluster {address}: stop it with Ctrl-C where it was started")
        end_actors(names)  # of a system that was killed

    @property
    def _engines(self) -> Sequence[str]:
        """What the engines are, if no file says so."""
        return self.config.engines or (f"onnx:{tiny24() / 'generator'}",)

    def _fleet(self) -> Any:
        """The engines that there are to be, if no file says so."""
        import ray

        from ramify.scheduler.actors.config import EngineConfig, FleetConfig
        from ramify.scheduler.engines.registry import gpus_of

        engines = self._engines
        there = ray.cluster_resources().get("GPU", 0)
        gpus = [gpus_of(spec) if there else 0 for spec in engines]
        if sum(gpus) > there:  # Ray would wait for more of them for ever
            raise StartFailed(f"the engines take {sum(gpus)} GPUs, and there are {there:.0f}: see tensor_parallel_size")
        return FleetConfig(tuple(EngineConfig(f"local:{index}", spec, gpus=gpus[index]) for index, spec in enumerate(engines)))

    def _start_actors(self, store_url: str, verifier: str) -> None:
        import ray
        from ray.exceptions import RayError

        from ramify.scheduler.actors.config import SystemConfig
        from ramify.scheduler.actors.limits import ShellLimits
        from ramify.scheduler.actors.supervisor import start_supervisor
        from ramify.scheduler.errors import SchedulerError

        fleet = self._fleet_file.value if self._fleet_file else self._fleet()
        retention_ms = None if self.config.retain_days is None else round(self.config.retain_days * DAY_MS)
        limits = ShellLimits(self.config.trees_max, round(1000 * self.config.lease_s), retention_ms=retention_ms)
        # The verifier and the store are on this machine, and may be out of reach from any other.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()} if self.config.ray else {}
        system = SystemConfig(
            store_url,
            verifier,
            fleet,
            self.config.shards,
            limits,
            work=self.config.work,
            labels=here,
            verifier_tls=self.config.verifier_tls,
        )
        patience_s = LOAD_S if any(engine.spec.startswith("vllm:") for engine in fleet.engines) else START_S
        if self.config.serve or self.config.http:
            self._serve(system, patience_s)
            return
        self._supervisor = start_supervisor(system)
        try:
            self.away = ray.get(self._supervisor.start.remote(), timeout=patience_s)
        except (RayError, SchedulerError) as error:
            cause = getattr(error, "cause", None) or error
            raise StartFailed(f"the scheduler did not start: {str(cause).strip().splitlines()[-1]}") from error

    def _serve(self, system: Any, patience_s: float) -> None:
        """Have Serve start the supervisor, and look after it and the fleet's file."""
        served.start(self.config.http)
        self._served = True
        served.deploy(system, self.config.fleet, patience_s)
        if self.config.http:
            served.deploy_http(self.address)

    def _look_at_fleet(self) -> None:
        """Have the fleet that its file describes now, as often as that takes; one that can't be read changes nothing."""
        if self._fleet_file is None or self._served:
            return
        if self._fleet_file.look():
            log.warning("the fleet has changed: %d engines", len(self._fleet_file.value.engines))
            self._applied_s = 0.0
        if time.monotonic() - self._applied_s > APPLY_S:
            self._apply_fleet(self._fleet_file.value)

    def _apply_fleet(self, fleet: Any) -> None:
        """Again and again, for a supervisor that has died may have forgotten it."""
        import ray

        if self._applying is not None:
            if not ray.wait([self._applying], timeout=0)[0]:
                return
            try:
                ray.get(self._applying)
            except Exception as error:
                log.error("the fleet could not be changed: %s", str(getattr(error, "cause", None) or error).splitlines()[0])
        self._applying, self._applied_s = self._supervisor.apply.remote(fleet), time.monotonic()

    def _watch(self) -> None:
        """Bring children that die back to life."""
        while not self._stopping.wait(WATCH_S):
            for child in self._children:
                try:
                    if child.revive():
                        log.error("%s died and was started again (log: %s)", child.log.stem, child.log)
                except LocalError as error:
                    self.failure = str(error)
                    return
            self._look_at_fleet()

    def stop(self) -> None:
        """Commit what is there and end every process. Idempotent; a second Ctrl-C does not cut it short."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._stop_ray()
        for child in reversed(self._children):
            child.stop()
        self._lock.release()

    def _stop_ray(self) -> None:
        if "ray" not in sys.modules:
            return
        import ray

        if self._served and ray.is_initialized():
            with contextlib.suppress(Exception):  # what is not committed is sampled again
                served.delete()
        if self._supervisor is not None and ray.is_initialized():
            with contextlib.suppress(Exception):  # likewise
                ray.get(self._supervisor.drain.remote(), timeout=DRAIN_S)
            if self.config.ray:
                from ramify.scheduler.actors.named import actor_names, end_actors

                end_actors(actor_names())
        started = psutil.Process().children(recursive=True)
        ray.shutdown()
        if self._ray_folder is not None:
            end_all([process for process in started if process.pid not in {child.pid for child in self._children}])
            shutil.rmtree(self._ray_folder, ignore_errors=True)
        self._supervisor = self._ray_folder = None


def fleet_file(path: Path) -> Watched[Any]:
    """The fleet that a file describes. Raises `Misconfigured`."""
    from ramify.scheduler.actors.fleet import read_fleet
    from ramify.scheduler.errors import FleetError

    try:
        return Watched(lambda: read_fleet(path), lambda _: [path], FleetError)
    except FleetError as error:
        raise Misconfigured(str(error)) from error


def check_engines(specs: Sequence[str]) -> None:
    """Refuse engines that are wrong by what is said of them. Raises `Misconfigured`."""
    from ramify.scheduler.engines.registry import check_engine
    from ramify.scheduler.errors import EngineError

    try:
        for spec in dict.fromkeys(specs):
            check_engine(spec)
    except EngineError as error:
        raise Misconfigured(str(error)) from error


def default_verifier(specs: Sequence[str]) -> str:
    """The reward model, as NAME=FOLDER, that goes with some engines."""
    from ramify.scheduler.engines.registry import is_simulated

    return "simulated-prm=simulated" if all(map(is_simulated, specs)) else f"tiny24-prm={tiny24() / 'prm'}"


def end_all(processes: list[psutil.Process]) -> None:
    """Wait for processes that are about to end; Ray's agents would take their time, so those are ended."""
    _, alive = psutil.wait_procs(processes, timeout=RAY_END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=RAY_END_S)
