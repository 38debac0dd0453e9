"""A rule as a scorer."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ramify.verifier.backends.base import ChainScorer
from ramify.verifier.chains import NO_STEP, Chain, ChainError, ChainScores
from ramify.verifier.errors import ModelError, ProblemError
from ramify.verifier.rules import Rule

logger = logging.getLogger(__name__)

ERROR_CHARS_MAX = 500


class RuleScorer(ChainScorer):
    """Scores with a rule, chain by chain: a batch gains nothing but fewer thread switches, or several threads of the rule's."""

    backend = "rule"
    context_tokens_max = 0
    batch_tokens_max = 1 << 18
    batch_wait_ms_max = 0.0

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._threads = ThreadPoolExecutor(rule.threads, f"rule-{rule.name}") if rule.threads > 1 else None

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return self._rule.name

    @property
    def revision(self) -> str:
        """See `Scorer`."""
        return self._rule.revision

    def close(self) -> None:
        """See `Scorer`."""
        if self._threads is not None:
            self._threads.shutdown()
        self._rule.close()

    def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
        """See `ChainScorer`."""
        return [*(map if self._threads is None else self._threads.map)(self._score, chains)]

    def _score(self, chain: Chain) -> ChainScores:
        if not chain.steps:
            return NO_STEP
        try:
            scores = [float(score) for score in self._rule.score(chain.problem, chain.steps, chain.reference)]
        except ProblemError as error:
            return ChainScores(error=ChainError.INVALID, message=str(error))
        except ModelError as error:
            return ChainScores(error=ChainError.MODEL, message=str(error))
        except Exception as error:
            logger.debug("rule '%s' failed", self.name, exc_info=True)  # once a chain: too often for more
            return self._failed(f"{type(error).__name__}: {error}")
        if len(scores) != len(chain.steps):
            return self._failed(f"it gave {len(scores)} scores for {len(chain.steps)} steps")
        return ChainScores(scores)

    def _failed(self, why: str) -> ChainScores:
        return ChainScores(error=ChainError.MODEL, message=f"rule '{self.name}' failed: {why}"[:ERROR_CHARS_MAX])
