"""An engine that is a server elsewhere: anything that speaks OpenAI's `/v1/completions`, vLLM and SGLang above all."""

import asyncio
import heapq
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import EngineStats, Finish, ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.circuit import State
from ramify.scheduler.engines.columns import Door, ResultsBuilder
from ramify.scheduler.engines.loop import Ended, EngineLoop
from ramify.scheduler.engines.openai_client import Completion, CompletionsClient, Endpoint, Limits, Refused, RowFailed
from ramify.scheduler.engines.openai_params import Form, OpenAIParams, describe, forms, json_object
from ramify.scheduler.engines.openai_steps import Codec, Step, UnknownEnd, read_step
from ramify.scheduler.engines.served import Served
from ramify.scheduler.errors import EngineAway

log = logging.getLogger(__name__)

GATHER_S = 0.005  # after a row has ended: the server ends others with it, and all go on as one
_SEED_MASK = 2**63 - 1  # servers take signed 64 bits
_NOTHING = np.empty(0, np.int32)
_FULL = Step(Finish.CONTEXT, 0.0, 0, _NOTHING, b"")


@dataclass(slots=True, eq=False)
class _Call:
    """A batch, and what is known of its groups' prefixes."""

    batch: StepBatch
    left: NDArray[np.int64]  # [G] rows that have not ended
    told: NDArray[np.bool_]  # [G] the server has said where a prompt came from
    missed: NDArray[np.bool_]  # [G] a row's prompt was prefilled for the most part
    prompts: dict[tuple[int, bool], list[int] | str] = field(default_factory=dict)  # by group and whether as tokens

    def chain(self, row: int) -> NDArray[np.int32]:
        """What a row continues."""
        group = self.batch.group[row]
        return self.batch.tokens[self.batch.offsets[group] : self.batch.offsets[group + 1]]


@dataclass(frozen=True, slots=True, order=True)
class _Row:
    """A row of a call; those that are less go first."""

    place: int
    ticket: int
    row: int
    call: _Call = field(repr=False, compare=False)


class OpenAIEngine(EngineLoop):
    """Samples at a server that speaks OpenAI's completions API; docs/engines.md tells how to use it.

    One request is one row, with the row's own seed. `n` continuations in one request would share a seed, so a row
    would depend on its siblings: one that is lost could not be sampled again by itself, as the scheduler does after a
    fault. The rows of a group are sent one right after the other, so a prefix cache serves all but the first.

    The server draws by the seed alone: a row's `code` is not used, so siblings are independent. How far a seed
    makes a row come again is up to the server (vLLM: nearly always, batches of other sizes may round otherwise).

    A row that the server refuses ends as `Finish.ERROR`, one that is too long for it as `Finish.CONTEXT`, and one that
    fails in all attempts, while others succeed, as `Finish.ERROR`. Where nothing succeeds the server is away: all open
    calls raise `EngineAway`, and so do new ones until `open_s` has passed and it answers again.

    Args:
        base_url: e.g. `http://host:8000/v1`.
        params: how to use it.

    Raises:
        EngineAway: the server can't be reached, or does not have the model. Asked while the constructor blocks.
        EngineError: a parameter is not good.
    """

    def __init__(self, base_url: str, params: OpenAIParams | None = None) -> None:
        self.params = params = params or OpenAIParams()
        self._codec = Codec(Path(params.tokenizer) if params.tokenizer else None)
        super().__init__(self._codec.vocabulary, params.waiting_rows_max)
        self._extra = json_object(params.extra_body)
        endpoint = Endpoint(base_url, params.api_key_env)
        self._model, self._info = describe(endpoint, params, self._codec)
        self._client = CompletionsClient(
            endpoint,
            Limits(params.slots, params.timeout_s, params.attempts_max, params.retry_s, params.failures_max, params.open_s),
        )
        self._forms = forms(params)
        self._calls: dict[int, _Call] = {}
        self._waiting: list[_Row] = []  # a heap
        self._door = Door()
        self._running: dict[_Row, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()  # cancelled, and not yet gone
        self._ended: list[tuple[_Row, Step | str]] = []  # a step, or why there is none
        self._away: EngineAway | None = None
        self._fault: Exception | None = None  # ours
        self._news = asyncio.Event()
        self._served, self._busy_until_s = Served(), time.monotonic()

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def stats(self) -> EngineStats:
        """What was done so far, as far as the server tells: prefixes only where its `usage` has `cached_tokens`.

        A group is a hit where the cache gave most of the prompt of each of its rows.
        """
        self._tick()
        running, waiting = len(self._running), len(self._waiting)
        return self._served.stats(rows_running=running, rows_waiting=waiting, rows_sampled=self._rows_sampled)

    async def generate(self, batch: StepBatch) -> AsyncGenerator[StepResults, None]:
        """See `Engine.generate`. An empty batch asks a server that was away whether it is back.

        Raises:
            EngineAway: the server is away.
            EngineError: the batch is malformed, too many rows wait, or the engine is closed.
        """
        self._raise_failure()
        state = self._client.circuit.state
        if state is State.OPEN or (state is State.HALF_OPEN and not len(batch)):
            await self._client.probe()
        async with aclosing(super().generate(batch)) as parts:
            async for part in parts:
                yield part

    def _wake(self) -> None:
        super()._wake()
        self._news.set()

    def _check(self, batch: StepBatch) -> None:
        """Nothing: any delimiter will do."""

    def _submit(self, ticket: int, batch: StepBatch) -> None:
        groups = len(batch.offsets) - 1
        left = np.bincount(batch.group, minlength=groups)
        places = self._door.places(batch).tolist()
        call = self._calls[ticket] = _Call(batch, left, np.zeros(groups, np.bool_), np.zeros(groups, np.bool_))
        for row in range(len(batch)):
            entry = _Row(places[row], ticket, row, call)
            if len(call.chain(row)) >= self._info.context_tokens_max:
                self._ended.append((entry, _FULL))
            else:
                heapq.heappush(self._waiting, entry)

    def _cancel(self, ticket: int) -> None:
        if self._calls.pop(ticket, None) is None:
            return
        self._waiting = [row for row in self._waiting if row.ticket != ticket]
        heapq.heapify(self._waiting)
        self._ended = [(row, step) for row, step in self._ended if row.ticket != ticket]
        self._abort([row for row in self._running if row.ticket == ticket])

    def _idle(self) -> bool:
        return not (self._waiting or self._running or self._ended)

    async def _release(self) -> None:
        self._waiting.clear()
        self._abort([*self._running])
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._client.close()

    async def _turn(self) -> Ended:
        self._fill()
        if not (self._idle() or self._ended or self._away):
            await self._news.wait()
            if self._ended and self._running:
                await asyncio.sleep(GATHER_S)
        self._news.clear()
        if self._fault is not None:
            raise self._fault
        if self._away is not None:
            self._give_up(self._away)
            self._away = None
        ended, self._ended = self._ended, []
        return self._results(ended)

    def _fill(self) -> None:
        """Send as many rows as slots and the circuit allow."""
        limit = self._client.circuit.limit(self.params.slots)
        self._tick()
        while self._waiting and len(self._running) < limit and self._away is None:
            row = heapq.heappop(self._waiting)
            self._running[row] = asyncio.get_running_loop().create_task(self._sample(row))
        if self._waiting and not self._running and self._away is None:  # a call came in while the server was being given up
            self._away = EngineAway("the server is left alone for a while")

    def _give_up(self, error: EngineAway) -> None:
        """End all calls: the server is away."""
        log.warning("%s; %d rows are given up", error, len(self._waiting) + len(self._running) + len(self._ended))
        for inbox in self._inboxes.values():
            inbox.put_nowait(EngineAway(str(error)))
        self._waiting.clear()
        self._ended.clear()
        self._calls.clear()
        self._abort([*self._running])

    def _abort(self, rows: list[_Row]) -> None:
        """Close the connections of running rows: the server gives them up too."""
        self._tick()
        for row in rows:
            task = self._running.pop(row)
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
            task.cancel()

    def _tick(self) -> None:
        now_s = time.monotonic()
        self._served.slot_busy_s += len(self._running) * (now_s - self._busy_until_s)
        self._busy_until_s = now_s

    async def _sample(self, row: _Row) -> None:
        """Have one row sampled, and leave what came of it; nothing where it was aborted meanwhile."""
        away: EngineAway | None = None
        fault: Exception | None = None
        step: Step | str = ""
        try:
            step = await self._step(row)
        except EngineAway as error:
            away = error
        except Exception as error:
            fault = error
        if row not in self._running:
            return
        self._tick()
        del self._running[row]
        if away is None and fault is None:
            self._ended.append((row, step))
        self._away, self._fault = self._away or away, self._fault or fault
        self._fill()
        self._news.set()

    async def _step(self, row: _Row) -> Step | str:
        """A row's step, or why the server gives none."""
        call, refusal = row.call, ""
        chain = call.chain(row.row)
        params = call.batch.params[call.batch.group_params[call.batch.group[row.row]]]
        room = self._info.context_tokens_max - len(chain)
        for form in self._forms:
            try:
                answer = await self._client.complete(self._body(row, form, min(params.max_step_tokens, room)))
                self._settle(form)
                self._count(row, answer)
                return read_step(self._codec, chain, params, room, answer)
            except Refused as error:
                if error.too_long:
                    return _FULL
                refusal = refusal or f"the server refuses the step: {error}"
                if self._forms == (form,):
                    break
            except (RowFailed, UnknownEnd) as error:
                return str(error)
        return refusal

    def _body(self, row: _Row, form: Form, max_tokens: int) -> dict[str, Any]:
        batch = row.call.batch
        group = int(batch.group[row.row])
        params = batch.params[batch.group_params[group]]
        key = (group, form.as_tokens)
        if key not in row.call.prompts:
            row.call.prompts[key] = self._codec.prompt(row.call.chain(row.row), as_tokens=form.as_tokens)
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": row.call.prompts[key],
            "max_tokens": max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "n": 1,
            "logprobs": 1,  # of the sampled token and the likeliest; 0 is taken for none by some
            "seed": int(batch.seed[row.row]) & _SEED_MASK,
        }
        if params.delimiter is not None:
            body["stop"] = [params.delimiter]
        if self.params.priority == "yes":
            body["priority"] = row.place
        if form.extensions:
            body["include_stop_str_in_output"] = params.delimiter is not None
            if self._codec.tokenizer is not None:
                body["return_token_ids"] = True
                body["add_special_tokens"] = False  # to a prompt that goes as text
        return body | self._extra

    def _settle(self, form: Form) -> None:
        """Keep to the first form that the server takes."""
        if len(self._forms) == 1:
            return
        if form != self._forms[0]:
            log.warning("%s takes no requests as %s: from now on they go as %s", self._model, self._forms[0], form)
        self._forms = (form,)

    def _count(self, row: _Row, answer: Completion) -> None:
        usage = answer.usage
        if usage is None or usage.prompt_tokens_details is None or usage.prompt_tokens_details.cached_tokens is None:
            return
        group, cached = row.call.batch.group[row.row], usage.prompt_tokens_details.cached_tokens
        self._served.prefilled += max(0, usage.prompt_tokens - cached)
        row.call.told[group] = True
        row.call.missed[group] |= 2 * cached < usage.prompt_tokens

    def _results(self, ended: list[tuple[_Row, Step | str]]) -> Ended:
        builders: dict[int, ResultsBuilder] = {}
        for row, step in ended:
            builder = builders.setdefault(row.ticket, ResultsBuilder())
            if isinstance(step, str):
                builder.explain(step)
                step = Step(Finish.ERROR, 0.0, 0, _NOTHING, b"")
            builder.add(row.row, step.finish, step.logprob, step.cost, step.tokens, step.text)
            self._served.sampled += step.cost
            call, group = row.call, row.call.batch.group[row.row]
            call.left[group] -= 1
            if call.told[group] and call.left[group] == 0:
                self._served.looked_up(missed=bool(call.missed[group]))
            if not call.left.any():
                self._calls.pop(row.ticket, None)
        return [(ticket, builder.build()) for ticket, builder in builders.items()]
