"""What waits for what: told with each beat, shown by `ramify jobs` and in a job's history."""

from ramify.scheduler.actors.admission import Admission
from ramify.scheduler.actors.backlog import Backlog
from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.actors.scoring import Scoring
from ramify.scheduler.actors.store_time import StoreTime
from ramify.store.leases import Wait

TOLD_S = 2.0  # what waits for less long is not worth telling
WAITS_MAX = 1000  # that are told at once


def waits(
    admission: Admission,
    dispatcher: Dispatcher,
    scoring: Scoring,
    backlog: Backlog,
    paused: str,
    store_time: StoreTime,
    now_s: float,
) -> list[Wait]:
    """All that waits, by job and what it waits for; `paused` says why nothing is sampled at all, where that is so."""
    found: dict[tuple[str, str], Wait] = {}

    def tell(job_id: str, what: str, reason: str, count: int, since_s: float) -> None:
        if since_s <= now_s - TOLD_S:
            found.setdefault((job_id, what), Wait(job_id, what, reason, count, store_time.at_ms(since_s)))

    for job_id, stuck in dispatcher.waits.items():
        tell(job_id, "engines", stuck.reason, stuck.steps, stuck.since_s)
    for job_id, wait in scoring.waits.items():
        tell(job_id, "verifier", wait.reason, wait.chains, wait.since_s)
    for job_id, held in admission.waits.items():
        tell(job_id, held.what, held.reason, held.problems, held.since_s)
    if backlog.began_s is not None:
        reason = paused or backlog.stuck or "a commit takes long"
        for job_id in admission.jobs:
            tell(job_id, "store", reason, backlog.steps, backlog.began_s)
    return [*found.values()][:WAITS_MAX]
