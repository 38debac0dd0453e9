"""What lies between chains and a model: rendering, checking, and the faults of single chains."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ramify.chat import ChatFormat
from ramify.verifier.backends.model import ModelScorer
from ramify.verifier.chains import Chain, ChainError
from ramify.verifier.columns import ChainColumns, ColumnScores
from ramify.verifier.conventions import make_convention
from ramify.verifier.conventions.base import Subject
from ramify.verifier.conventions.vocabulary import Vocabulary
from ramify.verifier.reading import Row

LETTERS = "abcdef +-\n"


def letters() -> Tokenizer:
    """A token for each of a few characters."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, **{letter: 1 + at for at, letter in enumerate(LETTERS)}}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return made


class SumReader:
    """A model whose log-odds are the sum of the tokens so far, less 20; "e" and "f" have it give no number."""

    backend = "simulated"
    revision = "1"
    context_tokens_max = 16
    batch_tokens_max = 64
    calls_max = 2
    failure = ""

    def __init__(self) -> None:
        self.tokenizer = letters()
        self.calls: list[list[Row]] = []
        self.closed = False

    def read(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        self.calls.append(list(rows))
        values = [row.tokens.astype(np.float64) - 20 * (np.arange(len(row.tokens)) == 0) for row in rows]
        for row, value in zip(rows, values, strict=True):
            value[row.tokens == 1 + LETTERS.index("e")] = math.nan
            value[row.tokens == 1 + LETTERS.index("f")] = math.inf
        return [np.cumsum(value)[row.reads] for row, value in zip(rows, values, strict=True)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def reader() -> SumReader:
    return SumReader()


@pytest.fixture
def scorer(reader: SumReader) -> ModelScorer:
    subject = Subject(Vocabulary(letters()), ChatFormat(), {})
    return ModelScorer("prm", make_convention("newline", subject, {}), reader)


def asked(*chains: Chain, known: Sequence[int] = ()) -> ChainColumns:
    columns = ChainColumns.of(chains)
    return ChainColumns(columns.text, columns.text_count, columns.length, known=np.array(known, np.int32))


def score(scorer: ModelScorer, columns: ChainColumns) -> ColumnScores:
    return scorer.score_columns(columns)


def test_scores_are_the_logistic_function_of_log_odds(scorer: ModelScorer) -> None:
    found = score(scorer, asked(Chain("a", ("b", "\n"))))
    odds = [1 + 10 - 20 + 2 + 10, 1 + 10 - 20 + 2 + 10 + 10]
    np.testing.assert_array_equal(found.scores, np.array([1 / (1 + math.exp(-x)) for x in odds], np.float32))


def test_equal_chains_are_read_once(scorer: ModelScorer, reader: SumReader) -> None:
    found = score(scorer, asked(Chain("a", ("b", "c")), Chain("a", ("d",)), Chain("a", ("b", "c"))))
    assert [len(rows) for rows in reader.calls] == [2]
    np.testing.assert_array_equal(found.scores[:2], found.scores[3:])
    assert np.isfinite(found.scores).all()


def test_known_steps_are_not_read(scorer: ModelScorer, reader: SumReader) -> None:
    chain = Chain("a", ("b", "c", "d"))
    whole = score(scorer, asked(chain)).scores
    found = score(scorer, asked(chain, chain, chain, chain, known=[0, 1, 2, 3]))
    for known in range(4):
        mine = found.scores[3 * known : 3 * known + 3]
        assert np.isnan(mine[:known]).all()
        np.testing.assert_array_equal(mine[known:], whole[known:])
    assert found.faults == []
    assert [row.reads.tolist() for row in reader.calls[-1]] == [[3, 5, 7], [5, 7], [7]]


def test_tokens_are_those_from_the_first_wanted_step_on(scorer: ModelScorer) -> None:
    chain = Chain("abc", ("b", "ca", "d"))
    counts = scorer.tokens(asked(chain, chain, chain, chain, Chain("a", ()), known=[0, 1, 2, 3, 0]))
    assert counts.tolist() == [4 + 2 + 3 + 2, 3 + 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("chain", "error", "message"),
    [
        (Chain("a", ()), ChainError.INVALID, "a chain needs at least one step"),
        (Chain("axb", ("a",)), ChainError.INVALID, "the problem has 'x' at character 2, which the model's vocabulary lacks"),
        (Chain("a", ("b", "c!")), ChainError.INVALID, "step 2 has '!' at character 2, which the model's vocabulary lacks"),
        (Chain("a", ("<unk>",)), ChainError.INVALID, "step 1 has '<' at character 1, which the model's vocabulary lacks"),
        (Chain("a", ("b" * 14,)), ChainError.TOO_LONG, "the chain has 17 tokens; the model reads at most 16"),
        (Chain("a", ("b", "c", "e", "d")), ChainError.MODEL, "the model gave nan at step 3"),
        (Chain("a", ("f",)), ChainError.MODEL, "the model gave inf at step 1"),
    ],
)
def test_a_fault_of_one_chain_does_not_harm_the_others(
    scorer: ModelScorer, chain: Chain, error: ChainError, message: str
) -> None:
    good = Chain("a", ("b", "c"))
    columns = asked(good, chain, good)
    found = score(scorer, columns)
    assert [(fault.chain, fault.error, fault.message) for fault in found.faults] == [(1, error, message)]
    before, bad, after = (part.scores for part in found.chains(columns))
    assert not bad
    assert before == after == score(scorer, asked(good)).scores.tolist()
    assert (scorer.tokens(columns) > 0).all()


def test_a_known_step_without_a_number_is_no_fault_and_the_message_counts_from_the_first(scorer: ModelScorer) -> None:
    assert score(scorer, asked(Chain("a", ("b", "c", "e")), known=[1])).faults[0].message == "the model gave nan at step 3"


def test_the_longest_chain_is_read(scorer: ModelScorer) -> None:
    assert score(scorer, asked(Chain("a", ("b" * 13,)))).faults == []


def test_a_batch_without_a_row_asks_nobody(scorer: ModelScorer, reader: SumReader) -> None:
    assert len(score(scorer, asked(Chain("a", ()))).faults) == 1
    assert reader.calls == []


def test_what_the_reader_says_of_itself_is_passed_on(scorer: ModelScorer, reader: SumReader) -> None:
    assert (scorer.backend, scorer.convention, scorer.context_tokens_max) == ("simulated", "newline", 16)
    assert (scorer.batch_tokens_max, scorer.calls_max, scorer.remembers) == (64, 2, True)
    scorer.close()
    assert reader.closed


def test_the_revision_is_of_reader_convention_and_texts(reader: SumReader) -> None:
    def revision(convention: str, texts: str) -> str:
        subject = Subject(Vocabulary(letters()), ChatFormat(), {})
        return ModelScorer("any", make_convention(convention, subject, {}), reader, texts=texts).revision

    assert len({revision("newline", ""), revision("newline", "x"), revision("value-head", "")}) == 3
    assert revision("newline", "x") == revision("newline", "x")


def test_a_reader_that_answers_too_little_fails_the_batch(scorer: ModelScorer, reader: SumReader) -> None:
    reader.read = lambda rows: [np.zeros(0) for _ in rows]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="1 steps were to be read, and 0 were"):
        score(scorer, asked(Chain("a", ("b",))))
