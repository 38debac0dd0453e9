r"""Answers to mathematical problems, compared by math-verify: `\frac{1}{2}` is `0.5`, and `\{1,2\}` is `\{2,1\}`.

Texts of strangers are parsed and simplified, which may take a second, an hour or all memory. So that is done in processes of
their own (`math_worker`), each of which ends when a chain has cost it too much. They are started by the first chain: the gateway,
which imports this module too, has none.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from importlib.metadata import version
from typing import TYPE_CHECKING

from ramify.verifier.errors import ModelError, ProblemError
from ramify.verifier.rules.base import Rule

if TYPE_CHECKING:
    from pebble import ProcessPool

REFERENCE_CHARS_MAX = 4096
CHAIN_CPU_S = 5.0  # of a worker for one chain
CHAIN_S = 120.0  # on the clock, for a worker that doesn't get on; then the pool kills it
WORKERS_MAX = 8
TASKS_MAX = 10_000  # of a worker; then a new one takes its place, so that what sympy keeps is bounded
POOLS_MAX = 2  # tried for one chain
PRELOADED = ["__main__", "ramify.verifier.rules.math_worker", "math_verify"]


class MathRule(Rule):
    r"""The rule "math": whether a chain's final answer is the reference answer.

    The last step scores 1.0 if it is, else 0.0: also where there is no answer yet. Steps before it score 1.0, for the rule reads
    answers and not the way to them: nothing speaks against one. See `math_worker` for what counts as the answer.
    """

    name = "math"
    revision = f"1-{version('math-verify')}"
    threads = max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0))))

    def __init__(self, cpu_s: float = CHAIN_CPU_S) -> None:
        self._cpu_s = cpu_s
        self._starting = threading.Lock()
        self._pool: ProcessPool | None = None

    def check_reference(self, reference: str) -> None:
        """See `Rule`."""
        if not reference.strip():
            raise ProblemError("the problem has no reference answer, which the rule 'math' compares with")
        if len(reference) > REFERENCE_CHARS_MAX:
            raise ProblemError(
                f"the reference answer has {len(reference)} characters; a formula has at most {REFERENCE_CHARS_MAX}"
            )

    def score(self, problem: str, steps: Sequence[str], reference: str) -> list[float]:
        """See `Rule`.

        Raises:
            ProblemError: there is no reference answer, or nothing that can be compared in it.
            ModelError: the answer could not be compared: it took too long, too much memory, or a worker was lost.
        """
        self.check_reference(reference)
        return [1.0] * (len(steps) - 1) + [float(self._judge("".join(steps), reference))]

    def close(self) -> None:
        """See `Rule`."""
        if self._pool is not None:
            self._stop(self._pool)

    def _judge(self, text: str, reference: str) -> bool:
        from pebble import ProcessExpired

        from ramify.verifier.rules.math_worker import Unreadable, final, judge

        found = "no worker could be started"
        for _ in range(POOLS_MAX):
            pool = self._ready()
            try:
                said = pool.schedule(judge, args=(final(text), reference, self._cpu_s), timeout=CHAIN_S).result()
            except (ProcessExpired, TimeoutError) as error:
                reason = f"took more than {self._cpu_s:g} s, or its worker died"
                raise ModelError(f"the comparison of the answer with the reference {reason}") from error
            except (
                CancelledError,
                RuntimeError,
                OSError,
            ) as error:  # the pool itself: a worker was killed that had nothing to do
                found = f"{type(error).__name__}: {error}"
                self._stop(pool)
                continue
            if isinstance(said, bool):
                return said
            if isinstance(said, Unreadable):
                raise ProblemError(f"the reference answer {reference[:60]!r} holds nothing that math-verify can read")
            raise ModelError(f"the answer cannot be compared with the reference: {said}")
        raise ModelError(f"the workers that compare answers fail: {found}")

    def _ready(self) -> "ProcessPool":
        import multiprocessing

        from pebble import ProcessPool

        with self._starting:
            if self._pool is None:
                # Forked from a server that has imported math-verify: a worker that died is replaced in no time, and no thread of
                # this process is left in the middle of what it does.
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload(PRELOADED)
                self._pool = ProcessPool(self.threads, max_tasks=TASKS_MAX, context=context)
                with contextlib.suppress(Exception):  # `schedule` says it again
                    _ = self._pool.active  # starts it
            return self._pool

    def _stop(self, pool: "ProcessPool") -> None:
        with self._starting:
            if self._pool is not pool:
                return  # another thread has stopped it
            self._pool = None
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()
