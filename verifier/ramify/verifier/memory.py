"""What a model has scored: it is remembered, so that a chain is computed once, and a longer one as its new steps.

Identical chains that are asked for at once are computed once, too, whoever asks. Memory is bounded in bytes: the chain that was
not used for longest is forgotten. Who continues one that is forgotten has to send it whole; it is never guessed.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.batching import Batcher
from ramify.verifier.chains import CHAIN_STEPS_MAX, NO_STEP, ChainError
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import DeadlineError, InvalidRequestError
from ramify.verifier.names import names_from, problem_name
from ramify.verifier.recent import Recent
from ramify.verifier.sent import WHOLE_BYTES_MAX, Answers, SentChains, need_prefix

MEMORY_BYTES_MAX = 256 << 20

COUNT_BYTES = SCORE_BYTES = 4
_NAN = np.float32(np.nan).tobytes()

Key: TypeAlias = bytes
"""A chain: the sizes in bytes of its problem and of each step, int32 each, then their text. Two that are equal are one chain, for
a further size in place of text would make the text longer."""

Scores: TypeAlias = bytes
"""Of a chain: float32 of each step. NaN for one that nobody has asked for, which costs a model that reads chains as a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Whoever has a chain computed."""

    priority: int


class Read(NamedTuple):
    """R chains that were read."""

    keys: list[Key]  # [R] empty: it has a fault
    steps: dict[Key, int]  # those without a fault, each once
    known: dict[Key, Scores]  # of a chain's first steps, where they are remembered
    faults: dict[int, ChainFault]  # by number
    last_only: bool


class Memory:
    """Scores chains through a batcher, and remembers them. Belongs to the event loop in which it is made.

    Args:
        batcher: Of the model.
        bytes_max: Of all that is remembered; 0: nothing is, and every chain has to come whole.
    """

    def __init__(self, batcher: Batcher, bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self.batcher = batcher
        self.scorer = batcher.scorer
        self.remembers = batcher.scorer.remembers and bytes_max > 0
        self._scored = Recent(bytes_max, self._forget)
        self._names: dict[Key, bytes] = {}  # of what is remembered, as far as they were asked for
        self._named: dict[bytes, Key] = {}
        self._under_way: dict[Key, Owner] = {}
        self._waiters: dict[Key, list[asyncio.Future[None]]] = {}  # of chains under way that others ask for too

    async def score(
        self,
        sent: SentChains,
        deadline_s: float | None = None,
        priority: int = 0,
        *,
        names: bool = False,
        last_only: bool = False,
    ) -> Answers:
        """The scores of the chains, and their names if they are wanted; see `Batcher.score` for the rest.

        With `last_only` those of the other steps may be NaN.
        """
        if self.remembers:
            answers = await self._score(self._read(sent, last_only), sent, deadline_s, priority, names)
        else:
            answers = await self._score_whole(sent, deadline_s, priority)
        self.batcher.metrics.count(len(sent), answers.faults)
        return answers

    async def close(self) -> None:
        """See `Batcher.close`."""
        await self.batcher.close()

    async def _score_whole(self, sent: SentChains, deadline_s: float | None, priority: int) -> Answers:
        chains = sent.chains
        found = await self.batcher.score(chains, deadline_s, priority)
        faults = {fault.chain: fault for fault in found.faults}
        faults |= {chain: need_prefix(chain) for chain, prefix in enumerate(sent.prefixes) if prefix}
        scores = found.scores.copy()
        scores[np.isin(np.repeat(np.arange(len(chains)), chains.length), list(faults))] = np.nan
        return Answers(scores, chains.length, sorted(faults.values()))

    async def _score(self, read: Read, sent: SentChains, deadline_s: float | None, priority: int, names: bool) -> Answers:
        found: dict[Key, Scores | ChainFault] = {}
        as_sent = None if sent.prefixes else sent
        shared = await self._compute(read, list(read.steps), found, deadline_s, priority, share=True, sent=as_sent)
        if shared:
            await _settled(shared.values(), deadline_s)
            # What others did not come to is computed here, whoever else is at it by now: else one might wait for ever.
            await self._compute(read, list(shared), found, deadline_s, priority, share=False)
        told = (
            [self._name(key, read.steps[key]) if isinstance(found.get(key), bytes) else b"" for key in read.keys] if names else ()
        )
        return _answers(sent, read, found, told)

    def _read(self, sent: SentChains, last_only: bool) -> Read:
        """What the chains are, what is known of them, and what is wrong with some."""
        chains, recall = sent.chains, self._scored.get
        text, counts = chains.text.tobytes(), chains.text_count.astype("<i4", copy=False).tobytes()
        ends = np.cumsum(chains.text_count, dtype=np.int64).tolist()
        read = Read([], {}, {}, {}, last_only)
        keys, steps, known, faults, _ = read
        at, begin, room = 0, 0, WHOLE_BYTES_MAX  # of the chain: its first text, and that text's first byte
        for index, size in enumerate(chains.length.tolist()):
            first, at = at, at + 1 + size
            start, begin = begin, ends[at - 1]
            prefix = sent.prefixes[index] if sent.prefixes else b""
            if prefix or not 0 < size <= CHAIN_STEPS_MAX:
                before = self._named.get(prefix, b"")
                scores = recall(before) if before else None
                if scores is None or not 0 < size <= CHAIN_STEPS_MAX - len(scores) // SCORE_BYTES:
                    faults[index] = _fault(index, size, prefix, scores)
                    keys.append(b"")
                    continue
                room -= len(before) + begin - start
                if room < 0:
                    raise InvalidRequestError(
                        f"the chains have more than {WHOLE_BYTES_MAX >> 20} MiB with what they continue: send fewer at once"
                    )
                head = COUNT_BYTES * (1 + len(scores) // SCORE_BYTES)
                key = before[:head] + counts[COUNT_BYTES * (first + 1) : COUNT_BYTES * at] + before[head:] + text[start:begin]
                size += len(scores) // SCORE_BYTES
            else:
                key = counts[COUNT_BYTES * first : COUNT_BYTES * at] + text[start:begin]
                scores = recall(counts[COUNT_BYTES * first : COUNT_BYTES * (at - 1)] + text[start : ends[at - 2]])
            keys.append(key)
            steps[key] = size
            if self.scorer.rereads:
                scores = _padded(scores or b"", size - 1) if last_only else _complete(scores)
            if scores:
                known[key] = scores
        return read

    async def _compute(
        self,
        read: Read,
        keys: Sequence[Key],
        found: dict[Key, Scores | ChainFault],
        deadline_s: float | None,
        priority: int,
        *,
        share: bool,
        sent: SentChains | None = None,
    ) -> dict[Key, asyncio.Future[None]]:
        """Puts into `found` what is remembered, and what is under way nowhere else, or not to be shared, once it is computed.

        `sent` are the chains of all keys, in their order, where they came whole.

        Returns:
            The others, and what is to be awaited for each.
        """
        mine, shared, owner = list[Key](), dict[Key, asyncio.Future[None]](), Owner(priority)
        recall, under_way = self._scored.get, self._under_way
        for key in keys:
            scores = recall(key)
            if self.scorer.rereads and not read.last_only:
                scores = _complete(scores)
            if scores is not None:
                found[key] = scores
                continue
            other = under_way.setdefault(key, owner)
            if share and other is not owner and other.priority <= priority:
                shared[key] = self._awaited(key)
            else:
                mine.append(key)
        if share:
            self.batcher.metrics.remembered_chains.inc(len(found))
            self.batcher.metrics.shared_chains.inc(len(shared))
        if mine:
            try:
                learn = partial(self._learn, mine, read.known, found)
                columns = _columns(read, mine) if sent is None or len(mine) < len(sent) else sent.chains
                columns = replace(columns, known=_known(read, mine))
                await self.batcher.score(columns, deadline_s, priority, learn)
            finally:
                for key in mine:
                    if under_way.get(key) is owner:
                        del under_way[key]
                    if self._waiters:
                        self._settle(key)
        return shared

    def _awaited(self, key: Key) -> asyncio.Future[None]:
        """Done once a chain that is under way is computed, or will not be."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, []).append(waiter)
        return waiter

    def _settle(self, key: Key) -> None:
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _learn(
        self,
        mine: Sequence[Key],
        known: Mapping[Key, Scores],
        found: dict[Key, Scores | ChainFault],
        first: int,
        columns: ChainColumns,
        computed: ColumnScores,
    ) -> None:
        """Remembers what was computed, but for chains with faults: those are computed again whenever they are asked for."""
        faults = {fault.chain: fault for fault in computed.faults}
        scores, keep, start = computed.scores.tobytes(), self._scored.put, 0
        ends = (columns.step_ends * SCORE_BYTES).tolist()
        for index, (key, end) in enumerate(zip(mine[first : first + len(columns)], ends, strict=True)):
            if index in faults:
                found[key] = faults[index]
            else:
                before = known.get(key, b"")
                found[key] = all_of_it = before + scores[start + len(before) : end]
                keep(key, all_of_it)
            if self._waiters:
                self._settle(key)
            start = end
        self.batcher.metrics.memory_bytes.set(self._scored.bytes)

    def _name(self, key: Key, steps: int) -> bytes:
        """The name of a chain that was just scored; empty if there was no room for it."""
        known = self._names.get(key)
        if known is not None:
            return known
        if self._scored.get(key) is None:
            return b""
        head = COUNT_BYTES * (1 + steps)
        ends = np.cumsum(np.frombuffer(key[:head], "<i4"), dtype=np.int64) + head
        texts = [key[start:end] for start, end in zip([head, *ends.tolist()], ends.tolist(), strict=False)]
        before = self._names.get(key[: head - COUNT_BYTES] + key[head : ends[-2]])
        name = names_from(before, texts[-1:])[-1] if before else names_from(problem_name(texts[0]), texts[1:])[-1]
        self._names[key], self._named[name] = name, key
        return name

    def _forget(self, key: Key) -> None:
        name = self._names.pop(key, None)
        if name is not None:
            del self._named[name]


def _padded(scores: Scores, steps: int) -> Scores:
    return scores + _NAN * (steps - len(scores) // SCORE_BYTES)


def _complete(scores: Scores | None) -> Scores | None:
    """The scores, if none is missing."""
    return None if scores is None or np.isnan(np.frombuffer(scores, "<f4")).any() else scores


def _fault(index: int, size: int, prefix: bytes, before: Scores | None) -> ChainFault:
    """What is wrong with a chain before it is scored."""
    if not size:
        return ChainFault(index, NO_STEP.error, NO_STEP.message)
    if prefix and before is None:
        return need_prefix(index)
    steps = size + len(before or b"") // SCORE_BYTES
    return ChainFault(index, ChainError.TOO_LONG, f"the chain has {steps:,} steps; more than {CHAIN_STEPS_MAX:,} are not scored")


def _columns(read: Read, keys: Sequence[Key]) -> ChainColumns:
    heads = [COUNT_BYTES * (1 + read.steps[key]) for key in keys]
    text = b"".join([key[head:] for key, head in zip(keys, heads, strict=True)])
    counts = b"".join([key[:head] for key, head in zip(keys, heads, strict=True)])
    return ChainColumns(
        np.frombuffer(text, np.uint8),
        np.frombuffer(counts, "<i4").astype(np.int32, copy=False),
        np.array(heads, np.int32) // COUNT_BYTES - 1,
    )


def _known(read: Read, keys: Sequence[Key]) -> NDArray[np.int32]:
    """`[R]` leading steps of each chain whose scores are remembered."""
    return np.array([len(read.known.get(key, b"")) // SCORE_BYTES for key in keys], np.int32)


async def _settled(others: Iterable[asyncio.Future[None]], deadline_s: float | None) -> None:
    """Waits until what others compute is there, or will not be."""
    try:
        async with asyncio.timeout_at(deadline_s):
            await asyncio.wait(list(others))
    except TimeoutError as error:
        raise DeadlineError("the deadline passed while others' chains were computed that are the same") from error


def _answers(sent: SentChains, read: Read, found: Mapping[Key, Scores | ChainFault], names: Sequence[bytes]) -> Answers:
    scores, faults = list[bytes](), dict(read.faults)
    for index, key in enumerate(read.keys):
        mine = found[key] if key else faults[index]
        if isinstance(mine, bytes):
            scores.append(mine)
        else:
            faults[index] = mine._replace(chain=index)
            scores.append(_NAN * int(sent.chains.length[index]))
    length = np.array([len(each) // SCORE_BYTES for each in scores], np.int32)
    joined = np.frombuffer(b"".join(scores), "<f4").astype(np.float32, copy=False)
    return Answers(joined, length, sorted(faults.values()), names)
