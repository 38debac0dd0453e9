"""An engine, a verifier and a checker whose answers depend on nothing but what they are asked about."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Chains, Compare, Generate
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.events import AnswersChecked, AnswersGrouped, StepsLost, StepsSampled, StepsScored
from ramify.scheduler.forest.columns import NO_GROUP
from ramify.scheduler.forest.ids import mix64_int
from ramify.scheduler.forest.table import select
from ramify.scheduler.plan import Verifier

Index = NDArray[np.int64]

# Per cent of steps that end so, the rest is STEP. Few words, so that chains repeat each other.
FINISHES = ((Finish.ERROR, 6), (Finish.CONTEXT, 10), (Finish.STEP_CUT, 18), (Finish.END, 45), (Finish.STEP, 100))
WORDS = ("one\n", "two\n", "", "trois étapes\n")
ALONE = Verifier("verifier")  # the one that most jobs have
UNSCORABLE = 23  # one chain in so many


def finish_of(node_id: int) -> Finish:
    percent = mix64_int(node_id, 77) % 100
    return next(finish for finish, below in FINISHES if percent < below)


def tokens_of(node_id: int, max_step_tokens: int) -> list[int]:
    """Up to and including the most that a step may have."""
    if finish_of(node_id) == Finish.ERROR:
        return []
    first = mix64_int(node_id, 78)
    return [(first + place) % 97 for place in range(1 + first % max_step_tokens)]


def text_of(node_id: int) -> str:
    return "" if finish_of(node_id) == Finish.ERROR else WORDS[mix64_int(node_id, 79) % len(WORDS)]


def logprob_of(node_id: int) -> float:
    return -(mix64_int(node_id, 80) % 64) / 8


def verdict_of(problem: str, steps: Sequence[str]) -> int:
    return zlib.crc32("".join((problem, *steps)).encode()) % 3


def scores_of(problem: str, steps: Sequence[str], model: str = ALONE.model) -> list[float]:
    """One for each step, of its prefix alone; NaN where it can't be scored."""
    head = problem if model == ALONE.model else model + problem
    prefixes = ["\0".join((head, *steps[: count + 1])) for count in range(len(steps))]
    hashes = [zlib.crc32(prefix.encode()) for prefix in prefixes]
    return [float("nan") if each % UNSCORABLE == 0 else (each // UNSCORABLE % 9) / 8 for each in hashes]


def judged(problem: str, steps: Sequence[str], ended: bool, verifiers: Sequence[Verifier]) -> list[float]:
    """The score of each step by several verifiers, number by number; before a chain's end each was judged when it came."""
    way = [each for each in verifiers if each.when != "end"]
    judges = [each for each in verifiers if each.when != "way"] or way
    said = {each: scores_of(problem, steps, each.model) for each in verifiers}

    def mean(of: Sequence[Verifier], at: int) -> float:
        total = found = 0.0
        for each in sorted(of):
            right, wrong = (score ** (1 / each.temperature) for score in (said[each][at], 1 - said[each][at]))
            total, found = total + each.weight, found + each.weight * (right / (right + wrong))
        return found / total

    scores = [mean(way, at) for at in range(len(steps))]
    return [*scores[:-1], mean(judges, -1)] if ended else scores


def i32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def sampled(command: Generate, which: Index) -> StepsSampled:
    """The engine's answer to some rows of a command."""
    nodes = command.node_id[which].tolist()
    tokens = [tokens_of(node, command.plan.params.max_step_tokens) for node in nodes]
    texts = [text_of(node).encode() for node in nodes]
    return StepsSampled(
        hint=command.hint[which],
        tree_id=command.tree_id[which],
        node_id=command.node_id[which],
        tokens=i32([token for step in tokens for token in step]),
        token_count=i32([len(step) for step in tokens]),
        text=np.frombuffer(b"".join(texts), np.uint8),
        text_count=i32([len(text) for text in texts]),
        logprob=np.array([logprob_of(node) for node in nodes], np.float32),
        finish=np.array([finish_of(node) for node in nodes], np.uint8),
        score=np.full(len(nodes), np.nan, np.float32),
        message="the engine could not",
    )


def scored(chains: Chains, which: Index, verifiers: Sequence[Verifier] = (ALONE,)) -> StepsScored:
    """The verifiers' answer to some chains."""
    texts, ended = chains.texts(), chains.ended.tolist()
    scores = [judged(problem=texts[at][0], steps=texts[at][1], ended=ended[at], verifiers=verifiers) for at in which.tolist()]
    return StepsScored(
        hint=chains.hint[which],
        tree_id=chains.tree_id[which],
        node_id=chains.node_id[which],
        scores=np.array([score for chain in scores for score in chain], np.float32),
        length=i32([len(chain) for chain in scores]),
        message="the verifier could not",
    )


def checked(chains: Chains, which: Index) -> AnswersChecked:
    """The checker's answer to some trees."""
    texts = [chains.texts()[at] for at in which.tolist()]
    verdicts = [verdict_of(*text) for text in texts]
    return AnswersChecked(chains.tree_id[which], np.array(verdicts, np.uint8))


def grouped(command: Compare) -> AnswersGrouped:
    """The answer of a shell whose rule takes answers for the same that begin with the same letter."""
    heads: dict[tuple[int, str], int] = {}
    found: list[int] = []
    for tree, answer in zip(command.tree_id.tolist(), command.answers, strict=True):
        known = sum(of == tree for of, _ in heads)
        found.append(heads.setdefault((tree, answer[0]), known) if answer else NO_GROUP)
    return AnswersGrouped(command.tree_id, command.node_id, i32(found))


def lost(asked: Generate | Chains, which: Index) -> StepsLost:
    """Some rows of a command that nobody will answer."""
    return StepsLost(asked.hint[which], asked.tree_id[which], asked.node_id[which], asked.attempt[which], "the wire was cut")


def some(event: StepsSampled, which: NDArray[np.bool_]) -> StepsSampled:
    """The event with some of its rows alone."""
    rows = ("hint", "tree_id", "node_id", "token_count", "text_count", "logprob", "finish", "score")
    return replace(
        event,
        **{name: getattr(event, name)[which] for name in rows},
        tokens=select(event.tokens, event.token_count, which),
        text=select(event.text, event.text_count, which),
    )
