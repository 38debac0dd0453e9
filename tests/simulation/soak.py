"""Runs random schedules for as long as SOAK_MINUTES says (10), on every core, and stops at the first that breaks a law.

SOAK_MINUTES=60 SOAK_FIRST=1000000 .venv/bin/python -m tests.simulation.soak
"""

import logging
import os
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from tests.simulation.schedules import Failed, run

FIRST = 1_000_000  # beyond the seeds of the tests
BATCH = 20  # schedules that a process runs at a time


def batch(first: int) -> tuple[int, Counter[str], int, int, str]:
    """Run some schedules: how many, what befell them, tokens spent, tokens spent twice, and what is wrong with the last."""
    logging.disable(logging.CRITICAL)
    happened, spent, twice = Counter[str](), 0, 0
    for seed in range(first, first + BATCH):
        try:
            cluster = run(seed)
        except Failed as error:
            return seed - first, happened, spent, twice, str(error)
        happened += cluster.happened
        spent += sum(job.counters["tokens"] for job in cluster.store.jobs.values())
        twice += cluster.costs.twice
    return BATCH, happened, spent, twice, ""


def main() -> int:
    """Run until the time is over."""
    minutes, first = float(os.environ.get("SOAK_MINUTES", "10")), int(os.environ.get("SOAK_FIRST", FIRST))
    cores = os.cpu_count() or 1
    began, told = time.monotonic(), time.monotonic()
    count, happened, spent, twice, failures = 0, Counter[str](), 0, 0, list[str]()
    with ProcessPoolExecutor(cores) as pool:
        under_way: set[Future[tuple[int, Counter[str], int, int, str]]] = set()
        while (time.monotonic() - began < 60 * minutes and not failures) or under_way:
            while len(under_way) < 2 * cores and time.monotonic() - began < 60 * minutes and not failures:
                under_way.add(pool.submit(batch, first))
                first += BATCH
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for one in done:
                some, befell, tokens, again, failure = one.result()
                count, spent, twice = count + some, spent + tokens, twice + again
                happened += befell
                failures += [failure] if failure else []
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{count:,} schedules", file=sys.stderr, flush=True)
    elapsed = (time.monotonic() - began) / 60
    for failure in failures:
        print(f"{failure} .venv/bin/python -m pytest tests/simulation/test_schedules.py\n")
    faults = ", ".join(f"{number:,} {what}" for what, number in happened.most_common())
    print(
        f"{count:,} of {count + len(failures):,} schedules came to what a calm run does, {count / elapsed:,.0f} a minute; "
        f"{100 * twice / max(1, spent):.1f} % of {spent:,} tokens were paid for twice, within the bound; {faults}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
