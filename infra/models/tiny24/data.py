"""Training data, exactly labelled: solution traces for the generator, labelled walks for the PRM.

Everything is a pair of arrays of one row a sequence: `ids` uint8 [N, L], padded on the right, and `labels`
int8 [N, L]. A label at position t is what the model shall predict there: a token's id, or IGNORE.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations_with_replacement

import numpy as np
import puzzles
from numpy.typing import NDArray
from puzzles import Number, Problem, State, Step

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "0123456789 >\n+-*/=:|"
VOCABULARY = (*SPECIAL, *CHARACTERS)
PAD, BOS, EOS, UNK = range(4)
TOKEN = {text: index for index, text in enumerate(VOCABULARY)}
PLUS, MINUS, NEWLINE = TOKEN["+"], TOKEN["-"], TOKEN["\n"]
IGNORE = -1
LENGTH = 72
"""Longest sequence kept: the rare five-number walk over large fractions is longer, and is dropped."""

Row = tuple[list[int], list[int]]
"""Ids and labels of one sequence."""
Arrays = tuple[NDArray[np.uint8], NDArray[np.int8]]


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of problem; the rest is four numbers with target 24."""

    countdown: float
    three: float
    five: float


GENERATOR_MIX = Mix(countdown=0.45, three=0.08, five=0.005)
"""Of the three quarters of its problems that `States` does not make."""
PRM_MIX = Mix(countdown=0.3, three=0.2, five=0.01)
"""Of the quarter of its problems that `States` does not make."""


def encode(text: str) -> list[int]:
    """One token a character."""
    return [TOKEN[character] for character in text]


class Problems:
    """Draws problems at random, never one of a held-out multiset."""

    def __init__(self, rng: random.Random, mix: Mix, solvable: bool) -> None:
        self.rng, self.mix, self.solvable = rng, mix, solvable
        self.hands = [hand for hand in puzzles.hands() if hand not in puzzles.heldout_hands()]
        self.solvable_hands = [hand for hand in self.hands if puzzles.can_reach(hand, 24)]
        # Solving five numbers is slow, so they come from a small pool.
        self.fives = [tuple(sorted(rng.choices(range(1, 14), k=5))) for _ in range(60 if mix.five else 0)]

    def draw(self) -> Problem:
        """One problem; a solvable one where only such are wanted."""
        while True:
            problem = self._candidate()
            if not self.solvable or problem.solvable():
                return problem

    def _candidate(self) -> Problem:
        rng, kind = self.rng, self.rng.random()
        if kind < self.mix.five:
            return Problem(rng.choice(self.fives), self._target())
        if kind < self.mix.five + self.mix.three:
            numbers = tuple(sorted(rng.choices(range(1, rng.choice((14, 14, 25))), k=3)))
            return Problem(numbers, 24 if rng.random() < 0.6 else self._target())
        if kind < self.mix.five + self.mix.three + self.mix.countdown:
            return Problem(rng.choice(self.hands), self._target())
        # Most hands can make 24; the PRM must see those that cannot too, as they come.
        return Problem(rng.choice(self.solvable_hands if self.solvable else self.hands), 24)

    def _target(self) -> int:
        return self.rng.randint(1, self.rng.choice((40, 100)))


class States:
    """Draws 24-problems so that the states after their first step are even over all such states.

    Those states (a pair's result and two numbers of 1..13) decide a search, and are many and unevenly met by
    walks. Each is met from several hands, also of numbers above 13, so that a model must look at the state:
    the hands, of which there are few, would be learnt by heart.
    """

    def __init__(self, rng: random.Random, live: float, alone: float, near: float = 0.75) -> None:
        """With the shares of states that can reach 24, of states given alone, and of hands of 1..13."""
        self.rng, self.live_share, self.alone_share, self.near_share = rng, live, alone, near
        self.makers: dict[Number, list[Step]] = {}
        made: set[Number] = set()
        for pair in combinations_with_replacement(range(1, 27), 2):
            for step in puzzles.steps(pair):
                self.makers.setdefault(step.result, []).append(step)
                if pair[1] <= puzzles.HIGHEST:
                    made.add(step.result)
        others = list(combinations_with_replacement(range(1, puzzles.HIGHEST + 1), 2))
        states = sorted({tuple(sorted((*pair, value))) for pair in others for value in made})
        self.live = [state for state in states if puzzles.can_reach(state, 24)]
        self.dead = [state for state in states if not puzzles.can_reach(state, 24)]

    def alone(self) -> Problem:
        """A state as a problem of its own."""
        return Problem(self.rng.choice(self.live if self.rng.random() < self.live_share else self.dead), 24)

    def draw(self) -> tuple[Problem, Step | None]:
        """A problem of four numbers and its first step, or the state itself as a problem."""
        rng, state = self.rng, self.alone().numbers
        value = rng.choice([value for value in state if value in self.makers])
        rest = puzzles.take(state, value) or []
        steps = [step for step in self.makers[value] if self._allowed(step, rest)]
        near = [step for step in steps if max(step.left, step.right) <= puzzles.HIGHEST]
        if not steps or rng.random() < self.alone_share:
            return Problem(state, 24), None
        step = rng.choice(near if near and rng.random() < self.near_share else steps)
        numbers = tuple(sorted((*rest, step.left, step.right)))
        return Problem(numbers, 24), Step(step.left, step.op, step.right, value, state)

    def _allowed(self, step: Step, rest: list[Number]) -> bool:
        return not touches_heldout(tuple(sorted((*rest, step.left, step.right))))


def touches_heldout(state: State) -> bool:
    """Whether a state of four numbers, within a longer problem, is a held-out multiset."""
    return len(state) == 4 and state in puzzles.heldout_hands()


def legal_step(state: State, rng: random.Random) -> Step:
    """A random legal step; small whole results are the likelier, for most are fractions or large."""
    legal = puzzles.steps(state)
    small = [step for step in legal if isinstance(step.result, int) and step.result <= 48]
    return rng.choice(small if small and rng.random() < 0.6 else legal)


def generator_row(problem: Problem, first: Step | None, explore: float, rng: random.Random) -> Row | None:
    """A problem's line and a random solution; the labels are the next tokens, from the first step on.

    The solution starts with the step `first` where there is one; else, with the odds `explore`, with any legal step. A
    generator of solutions alone is sure of wrong first steps on hands it has not seen, and no sampling recovers from
    that; this keeps its proposals diverse.
    """
    if first is None and rng.random() < explore:
        first = legal_step(problem.numbers, rng)
    if first is None:
        chosen = puzzles.random_solution(problem, rng)
    elif puzzles.can_reach(first.state, problem.target):
        chosen = [first, *puzzles.random_solution(Problem(first.state, problem.target), rng)]
    else:
        chosen = [first]
    if any(touches_heldout(step.state) for step in chosen):
        return None
    if rng.random() < 0.5:
        # The first step is the hard one: half of the traces stop there, without an end mark.
        chosen = chosen[:1]
    prompt = encode(problem.line())
    # The last step ends with the end mark in place of a newline: a chain needs no empty step in order to end.
    whole = len(chosen[-1].state) == 1
    ids = prompt + encode("\n".join(step.text() for step in chosen) + ("" if whole else "\n"))
    end = EOS if whole else IGNORE
    return ids, [IGNORE] * (len(prompt) - 1) + ids[len(prompt) :] + [end]


def prm_row(problem: Problem, lines: list[str]) -> Row:
    """A problem's line and steps; at each newline the label is `+` or `-`.

    Within right steps the labels are also the next characters (an auxiliary task that teaches the arithmetic;
    `train.py` gives it a small weight). The newlines' labels never appear among the inputs.
    """
    ids, labels = [], []
    for index, (line, good) in enumerate(
        zip((problem.line().removesuffix("\n"), *lines), puzzles.labels(problem, lines), strict=True)
    ):
        tokens = encode(line + "\n")
        ids += tokens
        labels += tokens[1:] if good and index else [IGNORE] * (len(tokens) - 1)
        labels.append(PLUS if good else MINUS)
    return ids, labels


class Walks:
    """Random walks: solution steps, other legal steps, and wrong steps of every kind."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def lines(self, problem: Problem, first: Step | None = None) -> list[str] | None:
        """The walk's step lines, `first` first; None where it would pass through a held-out multiset."""
        rng, state, found = self.rng, problem.numbers, []
        wanders, errs = rng.choice((0.1, 0.3, 0.6)), rng.choice((0.0, 0.1, 0.4))
        while len(state) > 1:
            step, first = first or self._step(state, problem.target, wanders), None
            line, state = self._text(step), step.state
            if rng.random() < errs:
                line, state = self._wrong(step, line, problem.target)
            if touches_heldout(state):
                return None
            found.append(line)
            if len(found) > 4:
                break
        return found

    def _step(self, state: State, target: Number, wanders: float) -> Step:
        good = () if self.rng.random() < wanders else puzzles.good_steps(state, target)
        if good:
            return self.rng.choice(good)
        return legal_step(state, self.rng)

    def _text(self, step: Step, swap: float = 0.05) -> str:
        """A step's line; now and then a sum or product with its operands the other way round, as right."""
        if step.op in "+*" and self.rng.random() < swap:
            step = Step(step.right, step.op, step.left, step.result, step.state)
        return step.text()

    def _wrong(self, step: Step, line: str, target: Number) -> tuple[str, State]:
        """A step like `step` but wrong, and the state that it claims. Now and then it happens to be right."""
        rng = self.rng
        kind = rng.choice(("bait", "bait", "bait", "result", "result", "left", "absent", "reused", "dropped"))
        result, rest = step.result, list(step.state)
        rest.remove(result)
        left, right = step.left, step.right
        if kind == "bait":
            result = self._bait(rest, result, target)
        elif kind == "result":
            # The likeliest error of a generator: a last step that claims the target.
            result = target if not rest and rng.random() < 0.7 else self._near(result)
        elif kind == "left" and rest:
            near = self._near(rng.choice(rest))
            rest[rng.randrange(len(rest))] = rng.choice((near, left, rng.randint(1, 13)))
        elif kind == "absent":
            left = self._near(left) if rng.random() < 0.6 else rng.randint(1, 13)
            result = self._result(left, step.op, right, result)
        elif kind == "reused":
            if rng.random() < 0.5:
                rest.append(rng.choice((left, right)))
            else:
                right = left
                result = self._result(left, step.op, right, result)
        elif rest:
            rest.pop(rng.randrange(len(rest)))
        state = tuple(sorted((*rest, result)))
        claimed = state
        # At times only the operation is wrong, and the numbers left are as they should be.
        if kind == "result" and rng.random() < 0.2:
            claimed = step.state
        wrong = Step(left, step.op, right, result, claimed)
        return wrong.text(), claimed

    def _result(self, left: Number, op: str, right: Number, otherwise: Number) -> Number:
        value = puzzles.compute(left, op, right)
        return otherwise if value is None else value

    def _bait(self, rest: list[Number], result: Number, target: Number) -> Number:
        """A wrong result with which the target could be reached: the error that fools a search."""
        if not rest:
            return target
        likely = [self._near(result) for _ in range(3)] + self.rng.sample(range(1, 37), 12)
        baits = [value for value in likely if puzzles.can_reach(tuple(sorted((*rest, value))), target)]
        return baits[0] if baits else self._near(result)

    def _near(self, value: Number) -> Number:
        """A value that could be mistaken for `value`."""
        rng = self.rng
        if isinstance(value, Fraction):
            return Fraction(value.numerator + rng.choice((1, 2)), value.denominator).limit_denominator(99)
        return max(0, value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10)))


def pack(rows: list[Row]) -> Arrays:
    """Rows of (ids, labels) as arrays; those longer than LENGTH are dropped."""
    rows = [row for row in rows if len(row[0]) <= LENGTH]
    ids = np.full((len(rows), LENGTH), PAD, np.uint8)
    labels = np.full((len(rows), LENGTH), IGNORE, np.int8)
    for index, (tokens, wanted) in enumerate(rows):
        ids[index, : len(tokens)] = tokens
        labels[index, : len(wanted)] = wanted
    return ids, labels


def generator_data(count: int, seed: int, explore: float) -> Arrays:
    """About `count` solution traces; see `generator_row` for `explore`."""
    rng = random.Random(seed)
    problems = Problems(rng, GENERATOR_MIX, solvable=True)
    states = States(rng, live=1.0, alone=0.0, near=0.6)
    rows: list[Row] = []
    for _ in range(count):
        problem, first = states.draw() if rng.random() < 0.25 else (problems.draw(), None)
        row = generator_row(problem, first, explore, rng)
        if row is not None:
            rows.append(row)
    return pack(rows)


def prm_data(count: int, seed: int) -> Arrays:
    """About `count` labelled walks."""
    rng = random.Random(seed)
    problems, walks = Problems(rng, PRM_MIX, solvable=False), Walks(rng)
    states = States(rng, live=0.55, alone=0.2)
    rows: list[Row] = []
    for _ in range(count):
        if rng.random() < 0.65:
            # The states alone, unwalked: the cheapest sequences that teach what is hardest.
            rows.append(prm_row(states.alone(), []))
            continue
        problem, first = states.draw() if rng.random() < 0.75 else (problems.draw(), None)
        lines = walks.lines(problem, first)
        if lines is None:
            continue
        ids, wanted = prm_row(problem, lines[: rng.choice((1, 2, 5, 5))])
        if len(problem.numbers) > 3 and rng.random() < 0.7:
            # Whether four numbers can make a target is as hard as it is useless to a search.
            wanted[ids.index(NEWLINE)] = IGNORE
        rows.append((ids, wanted))
    return pack(rows)


def heldout_walks(each: int = 5, seed: int = 3) -> tuple[list[str], list[list[bool]]]:
    """Walks over the held-out puzzles as texts, with the exact label at each newline: for judging a PRM."""
    rng = random.Random(seed)
    walks, texts, labels = Walks(rng), [], []
    for problem in puzzles.heldout():
        for _ in range(each):
            lines = walks.lines(problem)
            if lines is not None and len(lines) == 3:
                texts.append(problem.line() + "\n".join(lines) + "\n")
                labels.append(puzzles.labels(problem, lines))
    return texts, labels
