"""Several verifiers in one job: who is asked about which chains, and what their scores come to.

A model's score is calibrated first: its log-odds are divided by its temperature (Guo et al. 2017, arXiv:1706.04599, equation 9
for two classes). The step's score is the mean of what the models say that judge it, by their weights. Why it is that of the
probabilities and not of their log-odds is told in docs/decisions/019.

A chain that can go on is judged by the models for `always` and `way`. The last step of one that has ended is judged by those for
`always` and `end`, or by the others where there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Chains, Score
from ramify.scheduler.events import StepsScored
from ramify.scheduler.plan import Verifier


def calibrate(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """The scores in [0, 1] with their log-odds divided by `temperature`; NaN stays NaN.

    0 and 1 have no log-odds, so the division is done on the odds themselves.
    """
    right = scores.astype(np.float64)
    if temperature == 1.0:
        return right
    right, wrong = right ** (1 / temperature), (1 - right) ** (1 / temperature)
    return np.asarray(right / (right + wrong))


def combine(scores: Sequence[NDArray[np.float32]], verifiers: Sequence[Verifier]) -> NDArray[np.float32]:
    """`[N]` the mean of the calibrated `scores`, `[N]` of each of the verifiers, by their weights; NaN where one of them is NaN.

    The order of the models doesn't matter, to the bit, and the scores of a single model at temperature 1 stay what they are.
    """
    in_order = sorted(zip(verifiers, scores, strict=True), key=lambda pair: pair[0].model)
    total, mean = 0.0, np.zeros(len(scores[0]), np.float64)
    for verifier, mine in in_order:
        total += verifier.weight
        mean += verifier.weight * calibrate(mine, verifier.temperature)
    return (mean / total).astype(np.float32)


@dataclass(slots=True, eq=False)
class Panel:
    """R chains that the same models are asked about, and what they have answered so far."""

    chains: Chains
    way: tuple[Verifier, ...]  # that judge every step; if there are judges of the end, every step but the last
    end: tuple[Verifier, ...]  # that judge the last step; empty: as the others
    over: bool = False  # a model will not answer, so nobody waits for the others
    answers: dict[str, NDArray[np.float32]] = field(
        default_factory=dict
    )  # by model: `[R]` or `[sum of lengths]`, see `last_only`
    faults: dict[str, str] = field(default_factory=dict)  # by model: what is wrong with the first chain that it has no scores for

    @property
    def verifiers(self) -> list[Verifier]:
        """All that are asked."""
        return [*self.way, *(each for each in self.end if each not in self.way)]

    def hear(self, model: str, scores: NDArray[np.float32], fault: str) -> StepsScored | None:
        """Take a model's answer; returns that of the panel with the last one."""
        self.answers[model] = scores
        if fault:
            self.faults[model] = fault
        if len(self.answers) < len(self.verifiers):
            return None
        chains, models = self.chains, [each.model for each in self.verifiers]
        message = next((self.faults[model] for model in models if model in self.faults), "")
        return StepsScored(chains.hint, chains.tree_id, chains.node_id, self._scores(), chains.length, message)

    def _scores(self) -> NDArray[np.float32]:
        """`[sum of lengths]` the score of each step; NaN where nobody was asked about it."""
        last = np.cumsum(self.chains.length) - 1
        if self.way:
            scores = combine([self.answers[each.model] for each in self.way], self.way)
        else:
            scores = np.full(int(self.chains.length.sum()), np.nan, np.float32)
        if self.end:
            of_last = {each: self.answers[each.model][... if last_only(each) else last] for each in self.verifiers}
            faulty = np.any(
                [np.isnan(mine) for mine in of_last.values()], axis=0
            )  # also with one that doesn't judge the last step
            scores[last] = np.where(faulty, np.float32(np.nan), combine([of_last[each] for each in self.end], self.end))
        return scores


def last_only(verifier: Verifier) -> bool:
    """Whether a model is asked for the scores of last steps alone: an outcome reward model reads the chain anew for each."""
    return verifier.when == "end"


def panels(command: Score) -> list[Panel]:
    """Who is to judge the chains of a command; none if it is a single model whose scores count as they are."""
    plan, chains = command.plan, command.chains
    first, *others = plan.verifiers
    if not others and first.temperature == 1.0 and first.when != "end":
        return []
    way = tuple(each for each in plan.verifiers if each.when != "end")
    end = tuple(each for each in plan.verifiers if each.when != "way") or way
    if way == end:
        return [Panel(chains, way, ())]
    if not way or chains.ended.all():
        return [_of_ended(command, chains, way, end)]
    found = [Panel(chains.select(~chains.ended), way, ())]
    return [*found, _of_ended(command, chains.select(chains.ended), way, end)] if chains.ended.any() else found


def _of_ended(command: Score, chains: Chains, way: tuple[Verifier, ...], end: tuple[Verifier, ...]) -> Panel:
    """Who judges chains that have ended. Where every step is scored as it comes, all but the last have been."""
    return Panel(chains, way if command.plan.policy.scores == "end" else (), end)
