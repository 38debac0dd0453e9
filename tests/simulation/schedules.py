"""Random schedules: a job, a storm and all chance in it, from one number."""

import os
import random
from collections.abc import Iterator

from tests.simulation.cluster import Cluster
from tests.simulation.jobs import WORKS, calm
from tests.simulation.races import RACES
from tests.simulation.storms import Draw
from tests.simulation.world import Work

SEED = "RAMIFY_SIMULATION_SEED"  # runs this schedule alone

JOBS: dict[str, tuple[Work, ...]] = {**WORKS, **{f"{name} without a barrier": works for name, works in RACES.items()}}


class Failed(AssertionError):
    """A schedule that broke a law; says how to bring it back."""

    def __init__(self, seed: int, name: str, cluster: Cluster, error: BaseException) -> None:
        super().__init__(f"schedule {seed} ({name}): {error}\n\n{cluster!r}\n\nto run it again: {SEED}={seed}")


def job_of(seed: int) -> str:
    """The job of a schedule, by its name in `JOBS`."""
    return random.Random(f"job {seed}").choice([*JOBS])


def run(seed: int) -> Cluster:
    """Run a schedule to its end.

    Raises:
        Failed: a law is broken, or a job without races has come to other trees than in a calm run.
    """
    name = job_of(seed)
    cluster = Cluster(JOBS[name], Draw(seed).storm(), seed)
    try:
        cluster.run()
        if name in WORKS:
            results, steps = cluster.outcome()
            wanted_results, wanted_steps = calm(name).outcome()
            assert results == wanted_results, "other answers than in a calm run"
            assert steps == wanted_steps, "other trees than in a calm run"
    except Exception as error:
        raise Failed(seed, name, cluster, error) from error
    return cluster


def seeds(first: int, count: int) -> Iterator[int]:
    """Those to be run: `count` from `first` on, or the one that the environment names."""
    if SEED in os.environ:
        yield int(os.environ[SEED])
        return
    yield from range(first, first + count)
