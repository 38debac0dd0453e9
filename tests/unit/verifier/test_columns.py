import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.verifier.chains import NO_STEP, Chain, ChainScores
from ramify.verifier.columns import ChainColumns, ColumnScores
from ramify.verifier.errors import InvalidRequestError
from ramify.verifier.sent import Answers

texts = st.text("aé€𝄞\n", max_size=4)
chain_lists = st.lists(st.builds(Chain, texts, st.lists(texts, max_size=3).map(tuple), texts), max_size=6)


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


@given(chain_lists)
def test_columns_are_the_chains(chains: list[Chain]) -> None:
    columns = ChainColumns.of(chains)
    assert len(columns) == len(chains)
    assert columns.step_count == sum(len(chain.steps) for chain in chains)
    assert columns.chains() == chains


@given(chain_lists, st.data())
def test_a_part_is_of_its_chains(chains: list[Chain], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(chains)))
    end = data.draw(st.integers(start, len(chains)))
    part = ChainColumns.of(chains).part(start, end)
    assert part.chains() == chains[start:end]
    assert part.step_ends.tolist() == ChainColumns.of(chains[start:end]).step_ends.tolist()


@given(st.lists(chain_lists, min_size=1, max_size=4))
def test_concatenated_parts_are_all_their_chains(parts: list[list[Chain]]) -> None:
    columns = ChainColumns.concatenate([ChainColumns.of(part) for part in parts])
    assert columns.chains() == [chain for part in parts for chain in part]


@given(chain_lists, st.integers(-2, 30), st.data())
def test_as_many_chains_fit_as_there_is_room_for(chains: list[Chain], room: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(chains)))
    sizes = [sum(len(text.encode()) for text in (chain.problem, *chain.steps)) for chain in chains]
    ends = [end for end in range(start, len(chains) + 1) if sum(sizes[start:end]) <= room]
    assert ChainColumns.of(chains).fitting(start, room) == max(ends, default=start)


def test_what_is_no_utf8_is_replaced() -> None:
    columns = ChainColumns(np.frombuffer("p€".encode(), np.uint8), numbers(2, 2), numbers(1))
    assert columns.chains() == [Chain("p\ufffd", ("\ufffd\ufffd",))]


@pytest.mark.parametrize(
    ("text", "text_count", "length", "references", "message"),
    [
        (b"abc", [1, 2], [-1], [], r"length\[0\] is -1; it must not be negative"),
        (b"abc", [4, -1], [1], [], r"text_count\[1\] is -1; it must not be negative"),
        (b"abc", [1, 1, 1], [1], [], "text_count has 3 numbers; 1 problems and 1 steps need 2"),
        (b"abc", [], [2**31 - 1, 2**31 - 1], [], "text_count has 0 numbers; 2 problems and 4294967294 steps need 4294967296"),
        (b"abc", [1, 1], [1], [], "text has 3 bytes; the numbers in text_count add up to 2"),
        (b"", [2**31 - 1, 2**31 - 1, 2], [2], [], "text has 0 bytes; the numbers in text_count add up to 4294967296"),
        (b"abc", [1, 2], [1], ["a", "b"], "there are 2 references for 1 chains; give one for each, or none"),
    ],
)
def test_columns_that_do_not_fit_say_why(
    text: bytes, text_count: list[int], length: list[int], references: list[str], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ChainColumns(np.frombuffer(text, np.uint8), numbers(*text_count), numbers(*length), references)


def test_scores_as_columns_and_back() -> None:
    columns = ChainColumns.of([Chain("a", ("x", "y")), Chain("b", ()), Chain("c", ("z",))])
    each = [ChainScores([0.25, 0.5]), NO_STEP, ChainScores([0.75])]
    found = ColumnScores.of(each, columns)
    assert found.scores.tolist() == [0.25, 0.5, 0.75]
    assert found.chains(columns) == each
    last = Answers(found.scores, columns.length).last()
    assert last.tolist()[::2] == [0.5, 0.75]
    assert np.isnan(last[1])
    assert found.part(columns, 1, 3).chains(columns.part(1, 3)) == each[1:]
    assert found.part(columns, 0, 1).faults == []


def test_a_chain_needs_a_score_for_each_step() -> None:
    with pytest.raises(ValueError, match="chain 0 has 2 steps, but 1 scores"):
        ColumnScores.of([ChainScores([0.5])], ChainColumns.of([Chain("a", ("x", "y"))]))
