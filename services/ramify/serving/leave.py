"""`python -m ramify.serving.leave`: hand over what runs on this node, before it ends. For a pod's preStop."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import ray

from ramify import logs
from ramify.scheduler.actors.config import NAMESPACE
from ramify.scheduler.actors.engine_actor import PREFIX as ENGINE
from ramify.scheduler.actors.lanes import told
from ramify.scheduler.actors.named import SUPERVISOR, actor_names
from ramify.scheduler.actors.shard_actor import CUT_S
from ramify.scheduler.actors.shard_actor import PREFIX as SHARD

log = logging.getLogger("ramify.serving.leave")

CONNECT_S = 30  # to Ray, with all that is not handing over; then the process ends
ANSWER_S = 5.0  # in which an actor says where it is
WITHIN_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, whatever came of it: the node ends in any case, and what was not handed over is taken over."""
    parser = argparse.ArgumentParser(
        prog="python -m ramify.serving.leave", description="Hand over what runs on this node of a Ray cluster, before it ends."
    )
    parser.add_argument("--within-s", type=float, default=WITHIN_S, help="for shards to commit and engines to end their steps")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS", "auto"), help="of Ray; as a rule, found by itself")
    options = parser.parse_args(arguments)
    logs.configure()
    signal.alarm(ceil(options.within_s) + CONNECT_S)  # Ray itself would try for minutes
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        actors = {name: ray.get_actor(name, namespace=NAMESPACE) for name in actor_names()}
        left = asyncio.run(leave(actors, ray.get_runtime_context().get_node_id(), options.within_s))
    except Exception as error:  # Ray has ended, or never was
        log.error("nothing was handed over: %s", error)
        return 0
    finally:
        ray.shutdown()
    log.info("handed over: %s", ", ".join(left) or "nothing of ours was here")
    return 0


async def leave(actors: Mapping[str, Any], node: str, within_s: float) -> list[str]:
    """Have the shards on a node commit and give up their slots, and its engines end what they are at.

    Args:
        actors: handles on all of ours, by name.
        node: Ray's id of it.
        within_s: for all of that.

    Returns:
        Names of the actors that did so in time.
    """
    names = [name for name in actors if name.startswith((SHARD, ENGINE))]
    nodes = await asyncio.gather(*(_answer(actors[name].node.remote(), ANSWER_S) for name in names))
    here = [name for name, found in zip(names, nodes, strict=True) if found == node]
    engines = [name.removeprefix(ENGINE) for name in here if name.startswith(ENGINE)]
    if engines and SUPERVISOR in actors:
        await _answer(actors[SUPERVISOR].spare.remote(engines, within_s), ANSWER_S)
    ends = [actors[name].idle.remote() if name.startswith(ENGINE) else actors[name].drain.remote(within_s) for name in here]
    ended = await asyncio.gather(*(_answer(end, within_s) for end in ends))
    return [name for name, done in zip(here, ended, strict=True) if done is not False]


async def _answer(reference: Any, within_s: float) -> Any:
    """What an actor answers; False: nothing, in time."""
    try:
        async with asyncio.timeout(within_s + CUT_S):
            return await reference
    except Exception as error:
        log.warning("an actor does not answer: %s", told(error))
        return False


if __name__ == "__main__":
    sys.exit(main())
