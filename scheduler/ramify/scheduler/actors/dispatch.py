"""Sends what the shard wants sampled to the engines, as columns, as far as their credits reach.

An engine that is lost gets nothing more until it answers again; what waited for it, and what it was at, goes elsewhere at once.
What it was at may be what it died of: see `quarantine`. Engines may come and go: one that leaves ends what it is at.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import SpanKind

from ramify import tracing
from ramify.scheduler.actors.homes import Homes, Place
from ramify.scheduler.actors.lanes import Call, EngineHandle, Lane, LaneStatus, Queued, Rows, Stuck, names, told
from ramify.scheduler.actors.quarantine import Quarantine
from ramify.scheduler.actors.queues import Queue, SharedQueue, Weight
from ramify.scheduler.commands import Generate, Withdraw
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.events import Event
from ramify.scheduler.forest.ids import job_key
from ramify.scheduler.journal import without
from ramify.scheduler.placement import Routing, Terms, place

log = logging.getLogger(__name__)

SPECULATIVE_MAX = 1024  # speculative steps under way at once, on all engines
TRIES_MAX = 5  # see `ShardLimits`
PROBE_S = 0.25  # from one look at an engine that is away to the next; twice as long after each
PROBE_S_MAX = 8.0
ANSWER_S = 30.0  # an engine that says nothing for so long is asked whether it is there, and must answer in as much again
LOOK_S = 5.0  # between two looks for such engines
EVEN_S = 0.1  # between two tries to have an idle engine do what waits for another
ANYWHERE = Routing()


class Dispatcher:
    """See the module. Bounded by the shard's admission: it holds no step twice."""

    def __init__(
        self,
        engines: Sequence[EngineHandle],
        post: Callable[[Event], None],
        terms: Terms = Terms(),  # noqa: B008 (it is immutable)
        *,
        speculative_max: int = SPECULATIVE_MAX,
        tries_max: int = TRIES_MAX,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        place: Place = place,
        weight: Weight = lambda _: 1.0,
    ) -> None:
        """Hand events to `post`; nothing is sent before `begin`. Measurements have another `place`. `weight`: of a tenant."""
        self._lanes = [Lane(engine, job_key(engine.name)) for engine in engines]
        self._terms, self._homes = terms, Homes(place)
        self._speculative_max, self._weight = speculative_max, weight
        self._post, self._now_s, self._sleep = post, now_s, sleep
        self._quarantine = Quarantine(tries_max)
        self._tasks: set[asyncio.Task[None]] = set()  # calls, and what looks after engines
        self._homeless = Queue()  # while no engine with the model is alive
        self._homeless_since: dict[str, float] = {}  # by job
        self._seen: dict[int, float] = {}  # when what waits was seen first by `queued`
        self._evened_s = -EVEN_S  # when what waits was placed anew
        self._changed = False  # an engine has come or gone since the homeless were looked at
        self._speculating = 0  # speculative steps that are under way, on all engines
        self._guesses: dict[int, None] = {}  # their names, as long as their call is under way

    def begin(self) -> None:
        """Look for the engines; those that answer are sent steps from then on."""
        for lane in self._lanes:
            self._start(self._await_return(lane))
        self._start(self._watch())

    def use(self, engines: Sequence[EngineHandle], terms: Terms) -> None:
        """From now on there are these engines, and this is what regions cost.

        Those that are new are looked for; those that are there no more end what they are at, and are sent nothing more.
        """
        self._terms, self._changed = terms, True
        for lane in [*self._lanes]:
            if lane.engine not in engines and not lane.leaves:
                lane.leaves = True
                self._lose(lane, f"engine {lane.engine.name} leaves")
                self._end(lane)
        known = [lane.engine for lane in self._lanes if not lane.leaves]
        for engine in engines:
            if engine not in known:
                self._lanes.append(Lane(engine, job_key(engine.name)))
                if self._tasks:  # it has begun
                    self._start(self._await_return(self._lanes[-1]))

    def _end(self, lane: Lane) -> None:
        """Forget an engine that leaves, once nothing is under way there."""
        if lane.leaves and not lane.calls:
            self._lanes.remove(lane)

    @property
    def busy(self) -> bool:
        """Whether any step waits or is under way."""
        return bool(self._homeless or any(lane.calls or any(lane.queues) for lane in self._lanes))

    @property
    def waits(self) -> dict[str, Stuck]:
        """What waits because no engine can take it, by job."""
        found: dict[str, Stuck] = {}
        for command in self._homeless:
            job_id = command.plan.job_id
            known = found.get(job_id)
            reason = known.reason if known else self.missing(command.generator, command.plan.routing)
            found[job_id] = Stuck(reason, len(command.hint) + (known.steps if known else 0), self._homeless_since[job_id])
        return found

    @property
    def lanes(self) -> tuple[LaneStatus, ...]:
        """How each engine stands."""
        return tuple(lane.status for lane in self._lanes)

    def queued(self) -> dict[str, Queued]:
        """What waits to be sent, by tenant."""
        now_s = self._now_s()
        queues = [self._homeless, *(queue for lane in self._lanes for queue in (lane.waiting, lane.suspects))]
        seen, found = dict[int, float](), dict[str, Queued]()
        for command in (command for queue in queues for command in queue):
            name = int(command.node_id[-1])  # of a command that is sent in parts, the last part keeps it
            seen[name] = self._seen.get(name, now_s)
            known = found.get(command.plan.tenant, Queued(0, 0.0))
            found[command.plan.tenant] = Queued(known.steps + len(command.hint), max(known.age_s, now_s - seen[name]))
        self._seen = seen
        return found

    @property
    def moved_tokens(self) -> int:
        """Tokens of chains that are prefilled again: they go on elsewhere than where their cache is, or it was lost."""
        return self._homes.moved_tokens

    def info(self, model: str) -> ModelInfo | None:
        """What a model is (its name, or name@revision), if an engine has it, or had it when it was last seen."""
        return next((lane.info for lane in self._lanes if lane.serves(model)), None)

    def missing(self, model: str, routing: Routing = ANYWHERE) -> str:
        """Why no engine samples with a model for a job."""
        name, _, revision = model.partition("@")
        elsewhere = {lane.engine.region for lane in self._lanes if lane.alive and lane.serves(model)}
        if elsewhere and routing.regions:
            allowed = [lane for lane in self._lanes if lane.engine.region in routing.regions]
            unknown = [region for region in routing.regions if region not in {lane.engine.region for lane in allowed}]
            reasons = [f"no engine belongs to {', '.join(unknown)}"] if unknown else []
            reasons += [f"{lane.engine.name}: {lane.reason}" for lane in allowed if not lane.alive][:1]
            have = ", ".join(sorted(region or "engines of no region" for region in elsewhere))
            return "; ".join([f"{name} is alive in {have}, and the job allows {', '.join(routing.regions)} alone", *reasons])
        others = {lane.info.revision for lane in self._lanes if lane.alive and lane.info and lane.info.name == name}
        if others:
            return f"the job keeps to revision {revision} of {name}, the engines have {', '.join(sorted(others))}"
        had_it = [lane for lane in self._lanes if lane.info is not None and lane.info.name == name]
        away = had_it or [lane for lane in self._lanes if lane.info is None]
        return f"no engine with {name} is alive{f' ({away[0].engine.name}: {away[0].reason})' if away else ''}"

    def add(self, command: Generate) -> None:
        """Take a command; `pump` sends it. A step that was a speculation, and is asked for in earnest, is sampled once."""
        if not command.speculative:
            guesses = (queue for lane in self._lanes for queue in (*lane.speculative.queues, lane.suspects))
            self._drop([self._homeless, *guesses], command)
            under_way = np.isin(names(command), np.fromiter(self._guesses, np.uint64)) if self._guesses else np.zeros(1, np.bool_)
            if under_way.all():
                return
            command = without(command, under_way) if under_way.any() else command
        if (known := self._quarantine.known(command)) is not None:
            mine, reason = known
            self._post(Rows.of([command]).lost(np.flatnonzero(mine), reason))
            if mine.all():
                return
            command = without(command, mine)
        self._place(command)

    def _place(self, command: Generate) -> None:
        lanes = [lane for lane in self._lanes if lane.may_take(command.generator, command.plan.routing)]
        if not lanes:
            self._homeless.append(command)
            self._homeless_since.setdefault(command.plan.job_id, self._now_s())
            return
        one = len(self._lanes) == 1
        at = np.zeros(len(command.hint), np.int64) if one else self._homes.choose(command, lanes, self._terms)
        for index in np.flatnonzero(np.bincount(at)).tolist():
            mine = command if one else without(command, at != index)
            suspect = mine.attempt > 0
            if not suspect.any():
                (lanes[index].speculative if command.speculative else lanes[index].waiting).append(mine)
                continue
            lanes[index].suspects.append(without(mine, ~suspect))
            if not suspect.all():
                (lanes[index].speculative if command.speculative else lanes[index].waiting).append(without(mine, suspect))

    def withdraw(self, command: Withdraw) -> None:
        """Drop what has not been sent; the shard hears that it is lost. What is under way ends by itself."""
        queues = [self._homeless, *(queue for lane in self._lanes for queue in lane.queues)]
        for dropped in self._drop(queues, command):
            self._post(Rows.of([dropped]).lost(np.arange(len(dropped.hint)), "withdrawn"))

    def _drop(self, queues: Sequence[Queue], wanted: Generate | Withdraw) -> list[Generate]:
        """Take the steps that `wanted` names out of some queues; what was found there."""
        found: list[Generate] = []
        if not any(queues):
            return found
        gone_names = names(wanted)
        for queue in queues:
            for _ in range(len(queue)):
                command = queue.popleft()
                gone = np.isin(names(command), gone_names)
                if gone.any():
                    found.append(without(command, ~gone))
                if not gone.all():
                    queue.append(without(command, gone) if gone.any() else command)
        return found

    def pump(self) -> None:
        """Send as much as credits allow."""
        if self._changed or self._uneven():
            self._changed, self._evened_s = False, self._now_s()
            waiting = [command for lane in self._lanes for queue in (lane.waiting, lane.speculative) for command in queue.drain()]
            for command in (*self._homeless.drain(), *waiting):
                self._place(command)
            still = {command.plan.job_id for command in self._homeless}
            self._homeless_since = {job_id: since_s for job_id, since_s in self._homeless_since.items() if job_id in still}
        lanes = [lane for lane in self._lanes if lane.alive and not self._tries_suspects(lane)]
        for lane in lanes:
            self._send(lane, lane.waiting, lane.credits)
        for lane in lanes:
            if not lane.waiting:
                self._send(lane, lane.speculative, min(lane.credits - lane.queued, self._speculative_max - self._speculating))

    def _uneven(self) -> bool:
        """Whether an engine has nothing while more waits for another than that runs at once, and it may take some of it."""
        if self._now_s() - self._evened_s < EVEN_S:  # it may not be to be mended: a tree stays together
            return False
        idle = [lane for lane in self._lanes if lane.alive and not lane.load]
        crowded = [lane for lane in self._lanes if lane.alive and lane.waiting.steps > lane.slots] if idle else []
        wanted = {(each.generator, each.plan.routing) for lane in crowded for each in lane.waiting}
        return any(lane.may_take(*each) for lane in idle for each in wanted)

    def _tries_suspects(self, lane: Lane) -> bool:
        """Whether an engine is kept for suspects; once it has nothing else to do, their next group is sent."""
        if any(call.alone for call in lane.calls.values()):
            return True
        if not lane.suspects:
            return False
        if not lane.calls:
            self._call(lane, self._quarantine.take(lane.suspects, lane.slots), alone=True)
        return True

    def _send(self, lane: Lane, queue: SharedQueue, most: int) -> None:
        """Send up to `most` steps of a lane's queue, in one call."""
        if most > 0 and queue and (found := queue.take(most, lane.turns.held, self._weight)):
            self._call(lane, found, alone=False)

    def _call(self, lane: Lane, commands: list[Generate], *, alone: bool) -> None:
        call = Call.of(commands, lane.turns, lane.waiting.tenants, self._weight, alone=alone)
        lane.under_way += len(call.open)
        for command in commands:
            self._homes.sent(command, lane)
        lane.heard_s = self._now_s() if not lane.calls else lane.heard_s
        if call.guess.any():
            self._speculating += int(call.guess.sum())
            self._guesses |= dict.fromkeys(call.rows.names[call.guess].tolist())
        lane.calls[self._start(self._sample(lane, call))] = call

    async def close(self) -> None:
        """Give up all that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sample(self, lane: Lane, call: Call) -> None:
        assert lane.info is not None, "it is sent nothing before it has answered"
        jobs = (command.plan.job_id for command in call.commands)
        try:
            with tracing.span("engine.generate", jobs, kind=SpanKind.CLIENT, engine=lane.engine.name, steps=len(call.open)):
                async for results in lane.engine.generate(call.batch(lane.info), alone=call.alone):
                    call.begun, lane.heard_s = True, self._now_s()
                    if len(results.row):
                        self._ended(lane, call, results.row)
                        self._post(call.sampled(results))
            reason = f"engine {lane.engine.name} ended its answer early"
        except asyncio.CancelledError:
            if not call.fault:
                raise
            reason = call.fault
        except Exception as error:  # whatever an engine dies of, its steps must go elsewhere
            reason = f"engine {lane.engine.name} failed: {told(error)}"
            self._lose(lane, reason)
        finally:
            lane.calls.pop(asyncio.current_task(), None)  # type: ignore[arg-type]  # it runs in one
            self._end(lane)
            for name in call.rows.names[call.guess].tolist() if call.guess.any() else []:
                self._guesses.pop(name, None)
        lost = np.flatnonzero(call.open)
        if not len(lost):
            return
        self._ended(lane, call, lost)
        if not call.begun:  # it stood at the door when somebody else's steps killed the engine: nobody has tried it
            for command in call.commands:
                self._place(command)
            return
        if call.alone:
            self._quarantine.lost(call, lost, reason)
        self._post(call.rows.lost(lost, reason))

    def _ended(self, lane: Lane, call: Call, rows: NDArray[np.int64] | NDArray[np.int32]) -> None:
        call.open[rows] = False
        lane.under_way -= len(rows)
        for tenant, steps in call.by_tenant(rows):
            lane.turns.end(tenant, steps)
        self._speculating -= int(call.guess[rows].sum())

    def _lose(self, lane: Lane, reason: str) -> None:
        """Send nothing more to an engine until it answers again; what waits for it goes elsewhere."""
        if not lane.alive:
            return
        steps = lane.load - (lane.under_way if lane.leaves else 0)
        log.warning("%s; %d steps go elsewhere", reason, steps, extra={"engine": lane.engine.name})
        lane.alive, lane.reason = False, reason
        self._homes.lost(lane)
        for queue in lane.queues:
            for command in queue.drain():
                self._homeless.append(command)
                self._homeless_since.setdefault(command.plan.job_id, self._now_s())
        self._changed = True
        if not lane.leaves:
            self._start(self._await_return(lane))

    async def _await_return(self, lane: Lane) -> None:
        pause_s = PROBE_S
        while not lane.alive and not lane.leaves:
            try:
                async with asyncio.timeout(ANSWER_S):
                    lane.info = await lane.engine.describe()
                lane.alive = not lane.leaves
                self._changed |= lane.alive
            except Exception as error:  # it is still away
                lane.reason = told(error)
                log.info("engine %s is still away: %s", lane.engine.name, lane.reason, extra={"engine": lane.engine.name})
                await self._sleep(pause_s * random.uniform(0.5, 1.0))  # those who lost one engine must not all come back at once
                pause_s = min(2 * pause_s, PROBE_S_MAX)
        log.info("engine %s has %s", lane.engine.name, lane.info.name if lane.info else "nothing")

    async def _watch(self) -> None:
        """Give up engines that are silent: a machine may be gone without a word, or a process stand still."""
        while True:
            await self._sleep(LOOK_S)
            for lane in self._lanes:
                if lane.alive and lane.calls and self._now_s() - lane.heard_s > ANSWER_S:
                    self._start(self._ask(lane))

    async def _ask(self, lane: Lane) -> None:
        """Ask a silent engine whether it is there."""
        calls, lane.heard_s = dict(lane.calls), self._now_s()
        try:
            async with asyncio.timeout(ANSWER_S):
                await lane.engine.describe()
        except Exception as error:
            reason = f"engine {lane.engine.name} does not answer: {told(error)}"
            self._lose(lane, reason)
            for task, call in calls.items():
                call.fault = reason
                task.cancel()
        else:
            lane.heard_s = self._now_s()
