"""Has an actor's process tell what it does: in its log, and in traces."""

import logging

from ramify import logs, tracing

log = logging.getLogger(__name__)


def tell(service: str, **about: str) -> None:
    """From now on, of a process that is `service`, e.g. shard, and is about this shard, engine, ...

    An actor must not die of what it can't tell: Ray would start it anew for ever.
    """
    logs.configure(**about)
    try:
        tracing.configure(f"ramify-{service}", {f"ramify.{name}": value for name, value in about.items()})
    except tracing.TracingError as error:
        log.error("%s", error)
