"""Models by revision: a job keeps to the revisions that its first steps were sampled and scored with.

To the core and to `Scoring` a model's revision is a part of its name: asks of jobs that keep to different ones don't mix.
"""

import time
from collections.abc import Callable
from typing import Protocol

from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.client import ColumnsScored
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import RevisionError, UnavailableError, VerifierError

LOOK_MS = 1000  # how long the verifier may take to say what a model is
LOOK_AGAIN_S = 2.0  # after it has not


class Client(Protocol):
    """What is asked of `VerifierClient`."""

    async def score_columns(
        self, model: str, chains: ChainColumns, *, revision: str, last_only: bool, wait_for_ready: bool
    ) -> ColumnsScored:
        """See `VerifierClient`."""
        ...

    async def get_model(self, name: str, *, deadline_ms: int) -> pb.Model:
        """See `VerifierClient`."""
        ...


def pinned(model: str, revision: str) -> str:
    """A model's name with its revision; no model stays none."""
    return f"{model}@{revision}" if model else ""


class PinnedVerifier:
    """A verifier whose models are named with their revisions, as `pinned` does."""

    def __init__(self, client: Client, now_s: Callable[[], float] = time.monotonic) -> None:
        self._client, self._now_s = client, now_s
        self._missed: dict[str, tuple[float, str]] = {}  # by model: when it could not be looked at, and why

    async def score_columns(self, model: str, chains: ChainColumns, *, last_only: bool, wait_for_ready: bool) -> ColumnsScored:
        """See `VerifierClient`; while the verifier has the model in another revision, it is unavailable."""
        name, _, revision = model.rpartition("@")
        try:
            return await self._client.score_columns(
                name, chains, revision=revision, last_only=last_only, wait_for_ready=wait_for_ready
            )
        except RevisionError as error:
            raise UnavailableError(str(error)) from error

    async def revision(self, model: str) -> str:
        """The revision of a model as it is now.

        Raises:
            VerifierError: it can't be told now; asked again soon, it is told from memory.
        """
        missed_s, why = self._missed.get(model, (0.0, ""))
        if why and self._now_s() < missed_s + LOOK_AGAIN_S:
            raise UnavailableError(why)
        try:
            found = await self._client.get_model(model, deadline_ms=LOOK_MS)
        except VerifierError as error:
            self._missed[model] = self._now_s(), str(error)
            raise
        self._missed.pop(model, None)
        return found.revision
