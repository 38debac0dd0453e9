"""The ledger of open trees: no segment may be deleted that one of them needs, whatever became of a commit."""

import numpy as np

from ramify.scheduler.slots import SLOTS
from ramify.store.ledger import Ledger

ONE, OTHER = 64 + 3, 128 + 3  # trees of slot 3
THIRD = 64 + 9


def floor(ledger: Ledger, newest: int, slot: int = 3) -> int:
    return int(ledger.floors(newest)[slot])


def test_without_open_trees_nothing_is_needed() -> None:
    assert Ledger().floors(17).tolist() == [18] * SLOTS


def test_what_is_being_written_needs_what_comes_after_the_last_that_was_seen() -> None:
    ledger = Ledger()
    ledger.begin([ONE])
    assert floor(ledger, 17) == 1, "nothing was seen yet"
    ledger.done(5, [ONE], [], [])
    ledger.begin([ONE, OTHER, THIRD])
    assert [floor(ledger, 17), floor(ledger, 17, 9), floor(ledger, 17, 4)] == [5, 6, 18]
    ledger.done(9, [ONE, OTHER, THIRD], [ONE], [])
    assert [floor(ledger, 17), floor(ledger, 17, 9)] == [9, 9]


def test_a_commit_whose_answer_was_lost_counts_until_it_has_come() -> None:
    ledger = Ledger()
    ledger.seen(4)
    ledger.begin([ONE])  # written to segment 6, which nobody learns
    assert floor(ledger, 17) == 5
    ledger.begin([ONE])  # once more
    assert floor(ledger, 17) == 5
    ledger.done(6, [ONE], [], [])
    assert floor(ledger, 17) == 6


def test_first_segments_are_those_of_earlier_commits() -> None:
    ledger = Ledger()
    ledger.recovered({3: 1}, {ONE: 4})
    ledger.begin([ONE, OTHER])
    assert ledger.first_segments({ONE: 99, THIRD: 2}) == {ONE: 4, THIRD: 2}
    ledger.done(8, [ONE, OTHER], [], [])
    assert ledger.first_segments({}) == {ONE: 4, OTHER: 8}


def test_a_slot_is_known_under_the_epoch_of_its_recovery() -> None:
    ledger = Ledger()
    ledger.recovered({3: 1, 9: 1}, {ONE: 4, THIRD: 5})
    assert ledger.known({3: 1, 9: 2, 10: 1}) == [3]
    ledger.done(8, [], [], [3])
    assert ledger.known({3: 1, 9: 1}) == [9]
    assert [floor(ledger, 17), floor(ledger, 17, 9)] == [18, 5]


def test_what_was_known_of_an_earlier_claim_is_forgotten() -> None:
    """Its trees may have ended meanwhile, in another's hands."""
    ledger = Ledger()
    ledger.recovered({3: 1, 9: 1}, {ONE: 4, OTHER: 5, THIRD: 6})
    ledger.recovered({3: 3}, {OTHER: 5})
    assert np.sort(ledger.trees()).tolist() == sorted([OTHER, THIRD])
    assert floor(ledger, 17) == 5
    ledger.close([OTHER])
    assert floor(ledger, 17) == 18
