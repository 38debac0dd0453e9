import random
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from ramify.verifier.backends.onnx import FILES, OnnxScorer, _row_scores
from ramify.verifier.chains import Chain, ChainError

FOLDER = Path(__file__).parents[3] / "infra" / "models" / "tiny24" / "prm"

pytestmark = pytest.mark.skipif(
    not all((FOLDER / file).is_file() for file in FILES), reason="the tiny PRM is not in infra/models/tiny24/prm"
)

SOLUTION = Chain("4 5 6 10>24", ("10-4=6:5 6 6\n", "5*6=30:6 30\n", "30-6=24:24\n"))


@pytest.fixture(scope="module")
def scorer() -> OnnxScorer:
    return OnnxScorer("prm", FOLDER)


def random_chains(count: int, seed: int) -> list[Chain]:
    """Chains of 1 to 12 lines of noise in the model's alphabet: 15 to 200 tokens."""
    rng = random.Random(seed)
    line = "0123456789 +-*/=:|"
    return [
        Chain("4 5 6 10>24", tuple("".join(rng.choices(line, k=rng.randint(1, 15))) for _ in range(rng.randint(1, 12))))
        for _ in range(count)
    ]


def test_scores_are_bitwise_the_same_in_any_company(scorer: OnnxScorer) -> None:
    chains = random_chains(90, seed=1)
    alone = {chain: scorer.score([chain])[0] for chain in chains}
    assert len({len(scores.scores) for scores in alone.values()}) > 5
    for size in (2, 3, 33, 90):
        company = random.Random(size).sample(chains, size)
        assert scorer.score(company) == [alone[chain] for chain in company]


def test_two_threads_give_the_same_bits(scorer: OnnxScorer) -> None:
    chains = random_chains(20, seed=2)
    assert OnnxScorer("prm", FOLDER, threads=2).score(chains) == scorer.score(chains)


def test_scores_are_what_the_convention_says(scorer: OnnxScorer) -> None:
    """Told again without padding or batches: P(+) against P(-) at each newline but the problem's."""
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
        np.testing.assert_allclose(scorer.score([chain])[0].scores, wanted, atol=1e-5)


def test_delimiters_are_added_where_they_lack_and_never_doubled(scorer: OnnxScorer) -> None:
    bare = Chain(SOLUTION.problem, tuple(step.strip() for step in SOLUTION.steps))
    ended = Chain(SOLUTION.problem + "\n", SOLUTION.steps)
    assert scorer.score([SOLUTION]) == scorer.score([bare]) == scorer.score([ended])


def test_a_score_depends_on_what_is_before_alone(scorer: OnnxScorer) -> None:
    whole = scorer.score([SOLUTION])[0].scores
    for steps in (1, 2):
        part = scorer.score([Chain(SOLUTION.problem, SOLUTION.steps[:steps])])[0].scores
        np.testing.assert_allclose(part, whole[:steps], atol=1e-5)


def test_the_model_tells_right_steps_from_wrong(scorer: OnnxScorer) -> None:
    wrong = Chain(SOLUTION.problem, ("10-4=7:5 6 7\n",))
    right, wrong_scores = scorer.score([SOLUTION, wrong])
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
def test_what_cannot_be_scored_does_not_harm_the_rest(scorer: OnnxScorer, chain: Chain, error: ChainError, message: str) -> None:
    before, bad, after = scorer.score([SOLUTION, chain, SOLUTION])
    assert before == after == scorer.score([SOLUTION])[0]
    assert (bad.scores, bad.error, bad.message) == ((), error, message)


def test_the_longest_chain_is_scored(scorer: OnnxScorer) -> None:
    assert scorer.context_tokens_max == 256
    assert len(scorer.score([Chain("4 5", ("1" * 251,))])[0].scores) == 1


def test_every_token_can_be_a_step(scorer: OnnxScorer) -> None:
    """An empty step is a newline alone."""
    assert len(scorer.score([Chain("", ("", "\n", ""))])[0].scores) == 3


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_number(logit: float) -> None:
    for signs in ((logit, 0.0), (0.0, logit)):
        scores = _row_scores([(0.0, 0.0), signs])
        assert (scores.scores, scores.error) == ((), ChainError.MODEL)


def test_extreme_logits_are_scores() -> None:
    assert _row_scores([(1e4, -1e4), (-1e4, 1e4), (3.0, 3.0)]).scores == [1.0, 0.0, 0.5]


def test_the_revision_is_of_the_content(scorer: OnnxScorer, tmp_path: Path) -> None:
    for file in FILES:
        shutil.copy(FOLDER / file, tmp_path / file)
    assert OnnxScorer("another name", tmp_path).revision == scorer.revision
    assert len(scorer.revision) == 12
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert OnnxScorer("prm", tmp_path).revision != scorer.revision
