"""`python -m ramify.serving.leave`: hand over what runs on this node, before it ends. For a pod's preStop."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import ray

from ramify import logs
from ramify.scheduler.actors.config import NAMESPACE
from ramify.scheduler.actors.engine_actor import PREFIX as ENGINE
from ramify.scheduler.actors.named import SUPERVISOR, actor_names
from ramify.scheduler.actors.shard_actor import PREFIX as SHARD

log = logging.getLogger("ramify.serving.leave")

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
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        left = asyncio.run(leave(ray.get_runtime_context().get_node_id(), options.within_s))
    except Exception as error:  # Ray has ended, or never was
        log.error("nothing was handed over: %s", error)
        return 0
    finally:
        ray.shutdown()
    log.info("handed over: %s", ", ".join(left) or "nothing of ours was here")
    return 0


async def leave(node: str, within_s: float) -> list[str]:
    """Have the shards on a node commit and give up their slots, and its engines end what they are at.

    Returns:
        Names of the actors that did so in time.
    """
    names = [name for name in actor_names() if name.startswith((SHARD, ENGINE))]
    actors = {name: ray.get_actor(name, namespace=NAMESPACE) for name in names}
    nodes = await asyncio.gather(*(_answer(actor.node.remote(), ANSWER_S) for actor in actors.values()))
    here = [name for name, found in zip(names, nodes, strict=True) if found == node]
    engines = [name.removeprefix(ENGINE) for name in here if name.startswith(ENGINE)]
    if engines:
        supervisor = ray.get_actor(SUPERVISOR, namespace=NAMESPACE)
        await _answer(supervisor.spare.remote(engines, within_s), ANSWER_S)
    ends = [actors[name].idle.remote() if name.startswith(ENGINE) else actors[name].drain.remote(within_s) for name in here]
    ended = await asyncio.gather(*(_answer(end, within_s) for end in ends))
    return [name for name, done in zip(here, ended, strict=True) if done is not False]


async def _answer(reference: Any, within_s: float) -> Any:
    """What an actor answers; False: nothing, in time."""
    try:
        async with asyncio.timeout(within_s):
            return await reference
    except Exception as error:
        log.warning("%s", error or type(error).__name__)
        return False


if __name__ == "__main__":
    sys.exit(main())
