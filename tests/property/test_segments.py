"""Operations on segments against loops over their entries."""

import math
from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.scheduler.forest import segments
from ramify.scheduler.forest.ids import mix64, mix64_int, root_ids, tree_ids
from ramify.scheduler.forest.segments import count_before, total_in_segment
from ramify.scheduler.forest.table import Arena, Table, ranges
from tests.property.forests import SCORES, i32, same_score
from tests.property.reference import shares

U64 = st.integers(0, 2**64 - 1)
sorted_segments = st.lists(st.integers(0, 5), max_size=20).map(sorted)


def parts(segment: list[int]) -> list[list[int]]:
    """Positions of the entries of each segment."""
    return [[at for at, _ in group] for _, group in groupby(enumerate(segment), key=lambda pair: pair[1])]


def flags(data: st.DataObject, size: int) -> NDArray[np.bool_]:
    return np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), np.bool_)


@given(sorted_segments)
def test_starts_lengths_and_positions(segment: list[int]) -> None:
    array, each = i32(*segment), parts(segment)
    assert segments.segment_starts(array).tolist() == [part[0] for part in each]
    assert segments.segment_lengths(array).tolist() == [len(part) for part in each]
    assert segments.position_in_segment(array).tolist() == [place for part in each for place in range(len(part))]


@given(st.data(), sorted_segments)
def test_ranks(data: st.DataObject, segment: list[int]) -> None:
    size = len(segment)
    key = data.draw(st.lists(st.sampled_from(SCORES), min_size=size, max_size=size))
    tie = data.draw(st.lists(U64, min_size=size, max_size=size, unique=True))
    array, keys, ties = i32(*segment), np.array(key, np.float32), np.array(tie, np.uint64)
    found = segments.rank_in_segment(array, keys, ties)
    order = segments.order_in_segment(array, keys, ties).tolist()
    wanted = []
    for part in parts(segment):
        wanted += sorted(part, key=lambda at: (math.isnan(key[at]), 0 if math.isnan(key[at]) else -key[at], tie[at]))
    assert order == wanted
    for part in parts(segment):
        assert [at for at in wanted if at in part] == sorted(part, key=lambda at: int(found[at]))
        assert sorted(found[part].tolist()) == list(range(len(part)))


@given(st.data(), sorted_segments)
def test_shares(data: st.DataObject, segment: list[int]) -> None:
    each = parts(segment)
    totals = data.draw(st.lists(st.integers(0, 40), min_size=len(each), max_size=len(each)))
    found = segments.share_out(np.array(totals, np.int64), i32(*segment))
    wanted = [share for part, total in zip(each, totals, strict=True) for share in shares(total, len(part))]
    assert found.tolist() == wanted
    same = segments.share_out(np.int64(16), i32(*segment))  # type: ignore[arg-type]  # one number for all
    assert same.tolist() == [share for part in each for share in shares(16, len(part))]


@given(st.data(), sorted_segments)
def test_first_of_group(data: st.DataObject, segment: list[int]) -> None:
    size = len(segment)
    group = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    found = segments.first_of_group(i32(*segment), np.array(group, np.uint64))
    names = list(zip(segment, group, strict=True))
    assert found.tolist() == [names.index(name) == at for at, name in enumerate(names)]


@given(st.data(), st.lists(st.integers(0, 40), unique=True).map(sorted))
def test_minus(data: st.DataObject, trees: list[int]) -> None:
    others = data.draw(st.lists(st.sampled_from(trees), max_size=12)) if trees else []
    assert segments.minus(i32(*trees), i32(*others)).tolist() == [tree for tree in trees if tree not in others]


@given(st.data(), sorted_segments)
def test_counts_within_segments(data: st.DataObject, segment: list[int]) -> None:
    mask, array = flags(data, len(segment)), i32(*segment)
    before, total = [], []
    for part in parts(segment):
        before += [int(mask[part[:place]].sum()) for place in range(len(part))]
        total += [int(mask[part].sum())] * len(part)
    assert count_before(mask, array).tolist() == before
    assert total_in_segment(mask, array).tolist() == total


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=8))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, counts = np.array([start for start, _ in pairs], np.int64), i32(*[count for _, count in pairs])
    assert ranges(starts, counts).tolist() == [start + place for start, count in pairs for place in range(count)]


@given(st.lists(st.tuples(U64, U64), min_size=1, max_size=8))
def test_one_hash_for_columns_and_for_numbers(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    assert mix64(a, b).tolist() == [mix64_int(one, other) for one, other in pairs]


def test_ids_are_known_for_ever() -> None:
    """What was committed under an id must be found again by any later version."""
    problems = np.array([0, 1, 2**40], np.int64)
    assert mix64_int(1, 2) == 0xF893A2EEFB32555E
    assert root_ids(0, problems).tolist() != root_ids(1, problems).tolist()
    assert tree_ids("job-a", problems[:1]).tolist() != tree_ids("job-b", problems[:1]).tolist()
    assert len({*root_ids(-1, problems).tolist(), *root_ids(2**64 - 1, problems).tolist()}) == 3, "seeds are 64 bits"


class Pair(Table):
    COLUMNS = {"number": np.int32, "weight": np.float32}  # noqa: RUF012  # as every table writes it
    number: NDArray[np.int32]
    weight: NDArray[np.float32]


@given(st.data(), st.lists(st.integers(0, 90), max_size=6))
def test_a_table_is_a_list_of_rows(data: st.DataObject, sizes: list[int]) -> None:
    table, plain, fresh = Pair(), list[int](), 0
    for size in sizes:
        rows = table.append(size)
        assert rows.tolist() == list(range(len(plain), len(plain) + size))
        assert (table.number[rows] == 0).all(), "new rows are zero, whatever lay there"
        table.number[rows] = np.arange(fresh, fresh + size)
        plain += range(fresh, fresh + size)
        fresh += size
        if data.draw(st.booleans()):
            mask = np.array([number % 3 != 1 for number in plain], np.bool_)
            renumbered = table.keep(mask)
            plain = [number for number in plain if number % 3 != 1]
            assert renumbered[mask].tolist() == list(range(len(plain)))
            assert (renumbered[~mask] == -1).all()
        assert table.number[: table.size].tolist() == plain
        assert len(table.weight) == len(table.number)


@given(st.lists(st.lists(st.integers(0, 255), max_size=700), max_size=5))
def test_an_arena_gives_back_what_was_put_in(runs: list[list[int]]) -> None:
    arena = Arena(np.uint8)
    starts = np.array([arena.append(np.array(run, np.uint8)) for run in runs], np.int64)
    counts = i32(*[len(run) for run in runs])
    assert arena.take(starts[::-1], counts[::-1]).tolist() == [byte for run in runs[::-1] for byte in run]
    packed, moved = arena.repack(starts[1:], counts[1:])
    assert packed.take(moved, counts[1:]).tolist() == [byte for run in runs[1:] for byte in run]
    assert packed.size == sum(len(run) for run in runs[1:])


def test_same_score_knows_nan() -> None:
    assert same_score(math.nan, math.nan)
    assert not same_score(0.5, math.nan)
