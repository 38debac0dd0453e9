import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.verifier.backends.simulated import SimulatedParams, SimulatedScorer, load_simulated
from ramify.verifier.chains import NO_STEP, Chain, ChainError
from ramify.verifier.columns import ChainColumns, ChainFault

MASK = 2**64 - 1
BASE = 0x5851F42D4C957F2D

texts = st.text("ab\0é", max_size=5)
chain_lists = st.lists(st.builds(Chain, texts, st.lists(texts, max_size=4).map(tuple)), max_size=8)


def mix64(a: int, b: int) -> int:
    x = (a + 0x9E3779B97F4A7C15 * (b + 1)) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def polynomial(values: list[int]) -> int:
    return sum(value * pow(BASE, place, 2**64) for place, value in enumerate(values)) & MASK


def plainly(name: str, chain: Chain) -> list[float]:
    """The scores of one chain, told again without arrays."""
    key = int.from_bytes(hashlib.blake2b(f"1\0{name}".encode(), digest_size=8).digest(), "little")
    hashes = [mix64(polynomial([*text.encode()]), len(text.encode())) for text in (chain.problem, *chain.steps)]
    prefixes = [polynomial(hashes[:end]) for end in range(2, len(hashes) + 1)]
    return [((mix64(prefix, key) >> 41) + 0.5) / 2**23 for prefix in prefixes]


def scores_of(scorer: SimulatedScorer, *chains: Chain) -> list[float]:
    found: list[float] = scorer.score_columns(ChainColumns.of(chains)).scores.tolist()
    return found


@given(chain_lists)
def test_columns_give_what_each_chain_gives_alone(chains: list[Chain]) -> None:
    assert scores_of(SimulatedScorer("sim"), *chains) == [score for chain in chains for score in plainly("sim", chain)]


def test_large_batches_too() -> None:
    rng = random.Random(1)
    chains = [
        Chain(rng.randbytes(rng.randint(0, 300)).hex(), tuple(rng.randbytes(20).hex() for _ in range(rng.randint(1, 12))))
        for _ in range(200)
    ]
    scorer = SimulatedScorer("sim")
    found = scores_of(scorer, *chains)
    assert found == [score for chain in chains for score in plainly("sim", chain)]
    assert found[: len(chains[0].steps)] == scores_of(scorer, chains[0])
    assert 0.45 < np.mean(found) < 0.55
    assert 0 < min(found) < 0.01 < 0.99 < max(found) < 1
    assert len(set(found)) == len(found)


def test_scores_follow_from_problem_steps_and_name() -> None:
    chain = Chain("p", ("one", "two"))
    others = [Chain("q", ("one", "two")), Chain("p", ("onet", "wo")), Chain("p", ("on", "e", "two")), Chain("", ("pone", "two"))]
    scorer = SimulatedScorer("sim")
    last = {scores_of(scorer, each)[-1] for each in (chain, *others)} | {scores_of(SimulatedScorer("other"), chain)[-1]}
    assert len(last) == len(others) + 2
    assert scores_of(scorer, Chain("p", ("one", "three")))[0] == scores_of(scorer, chain)[0]
    assert scores_of(scorer, chain) == scores_of(SimulatedScorer("sim", SimulatedParams(base_ms=1), lambda s: None), chain)
    assert SimulatedScorer("other").revision != scorer.revision == SimulatedScorer("sim").revision


def test_chains_without_steps_or_too_long_have_faults() -> None:
    scorer = SimulatedScorer("sim", SimulatedParams(context_tokens_max=4))
    chains = [Chain("p", ()), Chain("pp", ("ss",)), Chain("pp", ("s", "ss")), Chain("p", ("s",))]
    found = scorer.score_columns(ChainColumns.of(chains))
    assert np.isnan(found.scores).tolist() == [False, True, True, False]
    assert found.faults == [
        ChainFault(0, NO_STEP.error, NO_STEP.message),
        ChainFault(2, ChainError.TOO_LONG, "the chain has 5 tokens; the model reads at most 4"),
    ]
    assert scorer.score_columns(ChainColumns.of(chains[2:3])).faults[0].error is ChainError.TOO_LONG
    assert scorer.context_tokens_max == 4


@pytest.mark.parametrize(("scale", "slept_s"), [(1.0, [0.0075]), (2.0, [0.015]), (0.0, [])])
def test_the_modelled_time_is_waited_for(scale: float, slept_s: list[float]) -> None:
    slept = list[float]()
    scorer = SimulatedScorer("sim", SimulatedParams(base_ms=5, token_us=500, time_scale=scale), slept.append)
    scores_of(scorer, Chain("ppp", ("ss",)))
    assert slept == slept_s


def test_options_are_read_from_the_spec() -> None:
    spec = "simulated?base_ms=2.5&token_us=0.5&time_scale=0&context_tokens_max=100"
    assert load_simulated("sim", spec)._params == SimulatedParams(2.5, 0.5, 0.0, 100)
    assert load_simulated("sim", "simulated")._params == SimulatedParams()
