"""A rule as a scorer."""

from collections.abc import Sequence

from ramify.verifier.backends.base import ChainScorer
from ramify.verifier.chains import NO_STEP, Chain, ChainError, ChainScores
from ramify.verifier.errors import ProblemError
from ramify.verifier.rules import Rule


class RuleScorer(ChainScorer):
    """Scores with a rule, chain by chain: a batch gains nothing but fewer thread switches."""

    backend = "rule"
    context_tokens_max = 0
    batch_tokens_max = 1 << 18
    batch_wait_ms_max = 0.0

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return self._rule.name

    @property
    def revision(self) -> str:
        """See `Scorer`."""
        return self._rule.revision

    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        """See `ChainScorer`."""
        return [self._score(chain) for chain in chains]

    def _score(self, chain: Chain) -> ChainScores:
        if not chain.steps:
            return NO_STEP
        try:
            return ChainScores(self._rule.score(chain.problem, chain.steps, chain.reference))
        except ProblemError as error:
            return ChainScores(error=ChainError.INVALID, message=str(error))
