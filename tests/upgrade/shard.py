"""A shard as a process of its own, without Ray: `python shard.py STORE VERIFIER OWNER ENGINE`.

It runs with the Ramify that PYTHONPATH names, this release or the one before, so it uses only what both have.
It has a simulated engine of its own, and says so when it works. When its input closes it drains, and says how many steps it has
sampled and committed.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ramify.scheduler.actors.aside import Aside
from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.engines.registry import load_engine
from ramify.store.jobs import Jobs, ModelRow
from ramify.verifier.client import VerifierClient

LEASE_MS = 120_000  # longer than anything stands still on a busy machine: slots move because they are handed over


@dataclass
class Engine:
    """See `EngineHandle`."""

    name: str
    engine: Any
    region: str = ""
    sampled: int = 0

    async def describe(self) -> Any:
        """What its model is."""
        return self.engine.info

    async def generate(self, batch: Any, *, alone: bool = False) -> AsyncIterator[Any]:
        """Sample steps."""
        async for results in self.engine.generate(batch):
            self.sampled += len(results.row)
            yield results


async def publish(store: Aside, engine: Engine, verifier: VerifierClient) -> None:
    """Say which models there are, as a supervisor does."""
    info = engine.engine.info
    rows = [ModelRow("generator", info.name, info.revision, info.delimiter, info.problem_format)]
    for name in (await verifier.get_model()).models:
        model = await verifier.get_model(name)
        rows.append(ModelRow("checker" if model.backend == "rule" else "verifier", name, model.revision, "", ""))
    await Jobs(store.database).put_models(rows)


async def main(store_url: str, verifier_address: str, owner: str, spec: str) -> None:
    """Work until the input closes."""
    engine, store = Engine(f"engine of {owner}", load_engine(spec)), Aside(store_url)
    async with VerifierClient(verifier_address) as verifier:
        await publish(store, engine, verifier)
        shell = Shell(store, owner, [engine], verifier, ShellLimits(lease_ms=LEASE_MS))
        run = asyncio.create_task(shell.run())
        print(json.dumps({"owner": owner}), flush=True)
        asked = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({run, asked}, return_when=asyncio.FIRST_COMPLETED)
        shell.stop()
        await run
        print(json.dumps({"sampled": engine.sampled, "committed": shell.committed_steps}), flush=True)
        await asked
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
