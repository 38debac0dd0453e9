"""Has an actor's process tell what it does: in its log, in traces, and to Prometheus."""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from ramify import logs, tracing

log = logging.getLogger(__name__)

TELL_S = 2.0  # Ray passes on every 10 s what was told since


def tell(service: str, **about: str) -> None:
    """Log and trace from now on, in a process that is `service`, e.g. shard, and is about this shard, engine, ...

    An actor must not die of what it can't tell: Ray would start it anew for ever.
    """
    logs.configure(**about)
    try:
        tracing.configure(f"ramify-{service}", {f"ramify.{name}": value for name, value in about.items()})
    except tracing.TracingError as error:
        log.error("%s", error)


async def over_and_over(tell_metrics: Callable[[], None]) -> NoReturn:
    """Tell Prometheus how something stands, until cancelled."""
    while True:
        try:
            tell_metrics()
        except Exception:
            log.exception("not all could be told to Prometheus")
        await asyncio.sleep(TELL_S)
