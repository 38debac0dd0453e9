"""A verifier as an application of Ray Serve: its own gRPC server, on a port of its node, which Serve keeps alive."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from ramify.serving.errors import Ill, Misconfigured
from ramify.tls import TlsError, server_tls
from ramify.verifier.batching import QUEUE_CHAINS_MAX
from ramify.verifier.loading import load_scorers
from ramify.verifier.memory import MEMORY_BYTES_MAX
from ramify.verifier.server import DRAIN_S_MAX, Limits, VerifierServer

log = logging.getLogger(__name__)

STOP_S = 5.0  # for all that is no drain


class VerifierArgs(BaseModel):
    """As the flags of `python -m ramify.verifier`."""

    model_config = ConfigDict(extra="forbid")

    models: list[str] = Field(default_factory=list)  # NAME=FOLDER
    rules: list[str] = Field(default_factory=list)
    listen: str = "0.0.0.0:50061"
    threads: Annotated[int, Field(ge=1)] = 1
    queue_chains_max: Annotated[int, Field(ge=1)] = QUEUE_CHAINS_MAX
    memory_mib: Annotated[int, Field(ge=0)] = MEMORY_BYTES_MAX >> 20
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None


@serve.deployment(
    name="verifier",
    num_replicas=1,
    max_replicas_per_node=1,  # each has the port to itself
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=DRAIN_S_MAX + STOP_S,
)
class Verifier:
    """See the module."""

    async def __init__(self, args: VerifierArgs) -> None:  # type: ignore[misc] # Serve awaits it
        """Load the models and serve them. Raises what they, or the port, can't be had for."""
        try:
            tls = server_tls(args.tls_cert, args.tls_key, args.tls_client_ca)
        except TlsError as error:
            raise Misconfigured(f"tls_cert, tls_key and tls_client_ca: {error}") from error
        self._server = VerifierServer(Limits(args.queue_chains_max, args.memory_mib << 20), tls=tls)
        self.address = await self._server.start(args.listen)
        scorers = await asyncio.to_thread(load_scorers, args.models, args.rules, args.threads)
        await self._server.serve(scorers)
        self._failed = asyncio.create_task(self._server.failed())
        log.info("serving %s on %s", ", ".join(scorer.name for scorer in scorers), self.address)

    async def check_health(self) -> None:
        """For Serve, which starts a new replica once a model can score no more."""
        if self._failed.done():
            raise Ill(self._failed.result())

    async def status(self) -> dict[str, str]:
        """Where it listens."""
        return {"address": self.address}

    async def __del__(self) -> None:
        """Called by Serve when the replica stops."""
        self._failed.cancel()
        await self._server.stop(DRAIN_S_MAX)
