"""The tiny process reward model, as the verifier serves it."""

import random
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from ramify.verifier.backends.base import Scorer
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import StartupError
from ramify.verifier.loading import load_model

FOLDER = Path(__file__).parents[3] / "infra" / "models" / "tiny24" / "prm"
FILES = ("config.json", "model.onnx", "ramify.json", "tokenizer.json")

pytestmark = pytest.mark.skipif(
    not all((FOLDER / file).is_file() for file in FILES), reason="the tiny PRM is not in infra/models/tiny24/prm"
)

SOLUTION = Chain("4 5 6 10>24", ("10-4=6:5 6 6\n", "5*6=30:6 30\n", "30-6=24:24\n"))


def load(options: str = "", folder: Path = FOLDER) -> Scorer:
    return load_model("prm", f"{folder}?{options}")


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load()


def score(scorer: Scorer, chains: list[Chain], known: list[int] | None = None) -> list[ChainScores]:
    columns = ChainColumns.of(chains)
    if known:
        columns.known[:] = known
    return scorer.score_columns(columns).chains(columns)


def random_chains(count: int, seed: int) -> list[Chain]:
    """Chains of 1 to 12 lines of noise in the model's alphabet: 15 to 200 tokens."""
    rng = random.Random(seed)
    line = "0123456789 +-*/=:|"
    return [
        Chain("4 5 6 10>24", tuple("".join(rng.choices(line, k=rng.randint(1, 15))) for _ in range(rng.randint(1, 12))))
        for _ in range(count)
    ]


def test_scores_are_bitwise_the_same_in_any_company(scorer: Scorer) -> None:
    chains = random_chains(60, seed=1)
    alone = {chain: score(load("cache_bytes_max=0"), [chain])[0] for chain in chains[:5]}
    alone |= {chain: score(scorer, [chain])[0] for chain in chains[5:]}
    assert len({len(scores.scores) for scores in alone.values()}) > 5
    for size in (2, 3, 33, 60):
        company = random.Random(size).sample(chains, size)
        for options in ("", "cache_bytes_max=0", "cache_bytes_max=1000000"):
            assert score(load(options), company) == [alone[chain] for chain in company]


def test_a_chain_that_grew_has_the_scores_that_it_has_after_a_restart(scorer: Scorer) -> None:
    growing = load()
    chains = random_chains(40, seed=5)
    grown: dict[Chain, list[float]] = {chain: [] for chain in chains}
    for size in range(1, 13):
        now = [chain for chain in chains if len(chain.steps) >= size]
        shorter = [Chain(chain.problem, chain.steps[:size]) for chain in now]
        for chain, found in zip(now, score(growing, shorter, [size - 1] * len(now)), strict=True):
            grown[chain].append(found.scores[-1])
    assert [scores.scores for scores in score(load(), chains)] == list(grown.values())


def test_two_threads_give_the_same_bits(scorer: Scorer) -> None:
    chains = random_chains(20, seed=2)
    assert score(load("threads=2"), chains) == score(scorer, chains)


def test_scores_are_what_the_convention_says(scorer: Scorer) -> None:
    """Told again without padding, batches or pasts: P(+) against P(-) at each newline but the problem's."""
    session = ort.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for chain in (SOLUTION, *random_chains(5, seed=3)):
        text = "".join(f"{line.removesuffix(chr(10))}\n" for line in (chain.problem, *chain.steps))
        ids = np.array([tokenizer.encode(text).ids])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
        for item in session.get_inputs():
            if item.name.startswith("past_key_values"):
                feed[item.name] = np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        logits = np.asarray(session.run(["logits"], feed)[0])[0]
        plus, minus = (np.exp(logits[:, tokenizer.token_to_id(sign)]) for sign in "+-")
        newlines = [at for at, character in enumerate(text) if character == "\n"]
        wanted = (plus / (plus + minus))[newlines[1:]]
        np.testing.assert_allclose(score(scorer, [chain])[0].scores, wanted, atol=1e-5)


def test_delimiters_are_added_where_they_lack_and_never_doubled(scorer: Scorer) -> None:
    bare = Chain(SOLUTION.problem, tuple(step.strip() for step in SOLUTION.steps))
    ended = Chain(SOLUTION.problem + "\n", SOLUTION.steps)
    assert score(scorer, [SOLUTION]) == score(scorer, [bare]) == score(scorer, [ended])


def test_a_score_depends_on_what_is_before_alone(scorer: Scorer) -> None:
    whole = score(scorer, [SOLUTION])[0].scores
    parts = [score(load(), [Chain(SOLUTION.problem, SOLUTION.steps[:steps])])[0].scores for steps in (1, 2)]
    assert all(list(shorter) == list(longer)[: len(shorter)] for shorter, longer in pairwise([*parts, whole]))


def test_the_model_tells_right_steps_from_wrong(scorer: Scorer) -> None:
    wrong = Chain(SOLUTION.problem, ("10-4=7:5 6 7\n",))
    right, wrong_scores = score(scorer, [SOLUTION, wrong])
    assert min(right.scores) > 0.5 > wrong_scores.scores[0]


@pytest.mark.parametrize(
    ("chain", "error", "message"),
    [
        (Chain("4 5", ()), ChainError.INVALID, "a chain needs at least one step"),
        (
            Chain("4 5 six", ("a",)),
            ChainError.INVALID,
            "the problem has 's' at character 5, which the model's vocabulary lacks",
        ),
        (
            Chain("4 5", ("4+5", "9 é")),
            ChainError.INVALID,
            "step 2 has 'é' at character 3, which the model's vocabulary lacks",
        ),
        (
            Chain("4 5", ("<eos>",)),
            ChainError.INVALID,
            "step 1 has '<' at character 1, which the model's vocabulary lacks",
        ),
        (Chain("4 5", ("1" * 252,)), ChainError.TOO_LONG, "the chain has 257 tokens; the model reads at most 256"),
    ],
)
def test_what_cannot_be_scored_does_not_harm_the_rest(scorer: Scorer, chain: Chain, error: ChainError, message: str) -> None:
    before, bad, after = score(scorer, [SOLUTION, chain, SOLUTION])
    assert before == after == score(scorer, [SOLUTION])[0]
    assert (bad.error, bad.message) == (error, message)


def test_the_longest_chain_is_scored(scorer: Scorer) -> None:
    assert scorer.context_tokens_max == 256
    assert len(score(scorer, [Chain("4 5", ("1" * 251,))])[0].scores) == 1
    assert len(score(scorer, [Chain("4 5", ("1" * 20,) * 12)])[0].scores) == 12


def test_every_token_can_be_a_step(scorer: Scorer) -> None:
    """An empty step is a newline alone."""
    assert len(score(scorer, [Chain("", ("", "\n", ""))])[0].scores) == 3


def test_the_revision_is_of_the_content(scorer: Scorer, tmp_path: Path) -> None:
    for file in FOLDER.iterdir():
        shutil.copy(file, tmp_path / file.name)
    assert load_model("another name", str(tmp_path)).revision == scorer.revision
    assert len(scorer.revision) == 12
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert load(folder=tmp_path).revision != scorer.revision
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(StartupError, match=r"model 'prm': ONNX Runtime can't load .*model\.onnx"):
        load(folder=tmp_path)
