"""What a model has scored: it is remembered, so that a chain is computed once, and a longer one as its new steps.

Identical chains that are asked for at once are computed once, too, whoever asks. Memory is bounded in bytes: the chain that was
not used for longest is forgotten. Who continues one that is forgotten has to send it whole; it is never guessed.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ramify.verifier.batching import Batcher
from ramify.verifier.chains import CHAIN_STEPS_MAX, NO_STEP, ChainError
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import DeadlineError
from ramify.verifier.lru import ByteLru
from ramify.verifier.names import names_from, problem_name
from ramify.verifier.sent import Answers, SentChains, need_prefix

MEMORY_BYTES_MAX = 256 << 20

COUNT_BYTES = SCORE_BYTES = 4


class Key(NamedTuple):
    """A chain as bytes; two that are equal are one chain."""

    counts: bytes  # int32: the bytes of the problem and of each step
    text: bytes  # UTF-8


class Scored(NamedTuple):
    """A chain that was scored."""

    key: Key
    scores: bytes  # float32 of each step
    name: bytes  # empty: nobody has asked for it


class Asked(NamedTuple):
    """A chain to be computed."""

    known: bytes  # scores of its first steps
    name: bytes  # empty: nobody asks for it


class Batch(NamedTuple):
    """R chains that were read."""

    keys: list[Key | None]  # [R] None: it has a fault
    asked: dict[Key, Asked]
    faults: dict[int, ChainFault]  # by number


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
        self._scored = ByteLru[Key, Scored](bytes_max, self._forgotten)
        self._named: dict[bytes, Key] = {}  # what is remembered and has a name
        self._under_way: dict[Key, asyncio.Future[None]] = {}  # done when whoever computes it is

    async def score(
        self, sent: SentChains, deadline_s: float | None = None, priority: int = 0, *, names: bool = False
    ) -> Answers:
        """The scores of the chains, and their names if they are wanted; see `Batcher.score` for the rest."""
        if self.remembers:
            answers = await self._score(sent, deadline_s, priority, names)
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
        return Answers(found.scores, chains.length, sorted(faults.values()))

    async def _score(self, sent: SentChains, deadline_s: float | None, priority: int, names: bool) -> Answers:
        batch = self._read(sent, names)
        found: dict[Key, Scored | ChainFault] = {}
        others = await self._compute(batch.asked, found, deadline_s, priority, share=True)
        if others:
            await _settled(others, deadline_s)
            # What they did not come to is computed here, whoever else is at it by now: else one might wait for ever.
            rest = {key: asked for key, asked in batch.asked.items() if key not in found}
            await self._compute(rest, found, deadline_s, priority, share=False)
        return _answers(sent, batch, found, names)

    def _read(self, sent: SentChains, names: bool) -> Batch:
        """What the chains are, what is known of them, and what is wrong with some."""
        chains, recall = sent.chains, self._scored.get
        text, counts = chains.text.tobytes(), chains.text_count.astype("<i4", copy=False).tobytes()
        ends = np.cumsum(chains.text_count, dtype=np.int64).tolist()
        batch = Batch([], {}, {})
        at, begin = 0, 0  # of the chain: its first text, and that text's first byte
        for index, size in enumerate(chains.length.tolist()):
            first, at = at, at + 1 + size
            start, begin = begin, ends[at - 1]
            prefix = sent.prefixes[index] if sent.prefixes else b""
            named = self._named.get(prefix) if prefix else None
            if fault := _fault(index, size, prefix, named):
                batch.faults[index] = fault
                batch.keys.append(None)
                continue
            if named is not None:
                key = Key(named.counts + counts[COUNT_BYTES * (first + 1) : COUNT_BYTES * at], named.text + text[start:begin])
                before = recall(named)
            else:
                key = Key(counts[COUNT_BYTES * first : COUNT_BYTES * at], text[start:begin])
                before = recall(Key(key.counts[:-COUNT_BYTES], text[start : ends[at - 2]])) if size > 1 else None
            known = before.scores if before else b""
            batch.asked[key] = Asked(known, _name(key, before) if names else b"")
            batch.keys.append(key)
        return batch

    async def _compute(
        self,
        asked: Mapping[Key, Asked],
        found: dict[Key, Scored | ChainFault],
        deadline_s: float | None,
        priority: int,
        *,
        share: bool,
    ) -> set[asyncio.Future[None]]:
        """Puts into `found` what is remembered, and what is under way nowhere else, or not to be shared, once it is computed.

        Returns:
            What is to be awaited for the others.
        """
        mine, others = dict[Key, Asked](), set[asyncio.Future[None]]()
        for key, chain in asked.items():
            known = self._scored.get(key)
            if known is not None:
                found[key] = known if known.name or not chain.name else self._keep(known._replace(name=chain.name))
            elif share and (other := self._under_way.get(key)) is not None:
                others.add(other)
            else:
                mine[key] = chain
        if share:
            self.batcher.metrics.remembered_chains.inc(len(found))
            self.batcher.metrics.shared_chains.inc(len(asked) - len(found) - len(mine))
        if not mine:
            return others
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for key in mine:
            self._under_way.setdefault(key, done)
        try:
            columns = _columns(mine)
            self._learn(mine, columns, await self.batcher.score(columns, deadline_s, priority), found)
        finally:
            for key in mine:
                if self._under_way[key] is done:
                    del self._under_way[key]
            done.set_result(None)
        return others

    def _learn(
        self, mine: Mapping[Key, Asked], columns: ChainColumns, computed: ColumnScores, found: dict[Key, Scored | ChainFault]
    ) -> None:
        """Remembers what was computed, but for chains with faults: those are computed again whenever they are asked for."""
        faults = {fault.chain: fault for fault in computed.faults}
        scores, start = computed.scores.tobytes(), 0
        for index, ((key, chain), end) in enumerate(zip(mine.items(), columns.step_ends.tolist(), strict=True)):
            if index in faults:
                found[key] = faults[index]
            else:
                new = scores[start * SCORE_BYTES + len(chain.known) : end * SCORE_BYTES]
                found[key] = self._keep(Scored(key, chain.known + new, chain.name))
            start = end
        self.batcher.metrics.memory_bytes.set(self._scored.bytes)

    def _keep(self, scored: Scored) -> Scored:
        if scored.name:
            self._named[scored.name] = scored.key
        self._scored.put(scored.key, scored, len(scored.key.text) + 2 * len(scored.scores) + len(scored.name))
        return scored

    def _forgotten(self, scored: Scored) -> None:
        if scored.name:
            self._named.pop(scored.name, None)


def _name(key: Key, before: Scored | None) -> bytes:
    """The name of a chain, from that of the chain before its last steps if there is one."""
    ends = np.cumsum(np.frombuffer(key.counts, "<i4"), dtype=np.int64).tolist()
    texts = [key.text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if before is not None and before.name:
        return names_from(before.name, texts[len(before.scores) // SCORE_BYTES + 1 :])[-1]
    return names_from(problem_name(texts[0]), texts[1:])[-1]


def _fault(index: int, size: int, prefix: bytes, named: Key | None) -> ChainFault | None:
    """What is wrong with a chain before it is read."""
    if not size:
        return ChainFault(index, NO_STEP.error, NO_STEP.message)
    if prefix and named is None:
        return need_prefix(index)
    steps = size + (len(named.counts) // COUNT_BYTES - 1 if named else 0)
    if steps > CHAIN_STEPS_MAX:
        return ChainFault(index, ChainError.TOO_LONG, f"the chain has {steps} steps; more than {CHAIN_STEPS_MAX} are not scored")
    return None


def _columns(asked: Mapping[Key, Asked]) -> ChainColumns:
    return ChainColumns(
        np.frombuffer(b"".join([key.text for key in asked]), np.uint8),
        np.frombuffer(b"".join([key.counts for key in asked]), "<i4").astype(np.int32, copy=False),
        np.fromiter((len(key.counts) // COUNT_BYTES - 1 for key in asked), np.int32, len(asked)),
        known=np.fromiter((len(chain.known) // SCORE_BYTES for chain in asked.values()), np.int32, len(asked)),
    )


async def _settled(others: set[asyncio.Future[None]], deadline_s: float | None) -> None:
    """Waits until what others compute is there, or will not be."""
    try:
        async with asyncio.timeout_at(deadline_s):
            await asyncio.wait(others)
    except TimeoutError as error:
        raise DeadlineError("the deadline passed while others' chains were computed that are the same") from error


def _answers(sent: SentChains, batch: Batch, found: Mapping[Key, Scored | ChainFault], names: bool) -> Answers:
    scores, told, nothing = list[bytes](), list[bytes](), np.float32(np.nan).tobytes()
    faults = dict(batch.faults)
    for index, key in enumerate(batch.keys):
        mine = found[key] if key is not None else faults[index]
        if isinstance(mine, Scored):
            scores.append(mine.scores)
            told.append(mine.name)
        else:
            faults[index] = mine._replace(chain=index)
            scores.append(nothing * int(sent.chains.length[index]))
            told.append(b"")
    length = np.fromiter((len(each) // SCORE_BYTES for each in scores), np.int32, len(scores))
    joined = np.frombuffer(b"".join(scores), "<f4").astype(np.float32, copy=False)
    return Answers(joined, length, sorted(faults.values()), told if names else ())
