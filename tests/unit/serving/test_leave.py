"""What is handed over before a node ends, by actors in this process."""

import asyncio
from typing import Any

import pytest

from ramify.serving.leave import leave


class Method:
    """As a handle has it."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class Actor:
    """A shard, an engine or the supervisor."""

    def __init__(self, node: str, log: list[str], *, stuck: bool = False) -> None:
        self._node, self._log, self._stuck = node, log, stuck

    def __getattr__(self, name: str) -> Method:
        async def call(*arguments: Any) -> Any:
            if name == "node":
                return self._node
            self._log.append(f"{name}{arguments}")
            if self._stuck:
                await asyncio.Event().wait()
            return True if name == "drain" else None

        return Method(call)


async def test_what_is_on_the_node_is_handed_over_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    here: list[str] = []
    there: list[str] = []
    supervisor: list[str] = []
    actors = {
        "ramify:supervisor": Actor("b", supervisor),
        "ramify:shard:0": Actor("a", here),
        "ramify:shard:1": Actor("b", there),
        "ramify:shard:2": Actor("a", [], stuck=True),
        "ramify:engine:h200:0": Actor("a", here),
        "ramify:engine:h200:1": Actor("b", there),
    }
    assert await leave(actors, "a", 0.1) == ["ramify:shard:0", "ramify:engine:h200:0"]
    assert (here, there) == (["drain(0.1,)", "idle()"], [])
    assert supervisor == ["spare(['h200:0'], 0.1)"], "first it is sent nothing more"
    assert "TimeoutError" in caplog.text
