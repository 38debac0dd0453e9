"""Engines on a server of the tests, and tokenizers for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from ramify.scheduler.engines.openai import OpenAIEngine
from ramify.scheduler.engines.openai_params import OpenAIParams
from tests.unit.engines.completions_server import CompletionsServer
from tests.unit.engines.helpers import PROBLEMS, Job, encode

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 |\n"


@asynccontextmanager
async def engine_at(server: CompletionsServer, **options: Any) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(server.url, OpenAIParams(**options))
    try:
        yield engine
    finally:
        await engine.close()


def jobs_of(engine: OpenAIEngine, rows: int = 6) -> list[Job]:
    chains = [encode(engine, problem) for problem in PROBLEMS]
    return [Job(chain, 100 * at + row) for at, chain in enumerate(chains) for row in range(rows)]


def character_tokenizer() -> Tokenizer:
    """One token a character, so that a text has as many tokens as bytes."""
    vocabulary = {"<unk>": 0, **{character: 1 + at for at, character in enumerate(CHARACTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path) -> str:
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


async def until(condition: Callable[[], bool]) -> None:
    """Return once something has come about in the server's thread."""
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "it did not come about"
        await asyncio.sleep(0.005)
