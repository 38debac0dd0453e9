"""Trying again while the store is away."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)

RETRY_S = 0.25  # after a first failure; twice as long after each
RETRY_S_MAX = 4.0

T = TypeVar("T")


async def again(
    what: str,
    work: Callable[[], Awaitable[T]],
    *,
    failed: Callable[[SQLAlchemyError], None] = lambda _: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Do something with the store until it is done, or fails otherwise than by the store's absence; cancel it to give up.

    Args:
        what: said in the log.
        work: safe to be repeated.
        failed: hears of each failure.
        sleep: waits for a number of seconds.
    """
    pause_s = RETRY_S
    while True:
        try:
            return await work()
        except SQLAlchemyError as error:
            (log.error if pause_s == RETRY_S else log.info)("%s failed, trying again: %s", what, error)
            failed(error)
        await sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, RETRY_S_MAX)
