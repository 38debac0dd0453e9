"""Policies that grow a tree level by level decide, turn by turn, as their plain references decide about each tree."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Flag, Status
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.segments import (
    points_in_segment,
    segment_lengths,
    segment_starts,
    softmax_in_segment,
    sums_in_segment,
)
from ramify.scheduler.policies.dvts import Dvts
from ramify.scheduler.policies.lookahead import Lookahead
from ramify.scheduler.policies.particle import Particle
from ramify.scheduler.policies.rebase import Rebase, apportion
from tests.property.forests import Grown, add_child, forests, i32, planted, settle, some_trees
from tests.property.growth import compare, decide, grow, place_among_siblings
from tests.property.plain_dvts import plain_dvts
from tests.property.plain_lookahead import plain_lookahead
from tests.property.plain_particle import plain_particle
from tests.property.plain_rebase import plain_rebase, plain_shares, weights
from tests.property.reference import has_ended

aggregates = st.sampled_from(get_args(Aggregate))
max_steps = st.integers(1, 4)
balances = st.sampled_from((0.01, 0.2, 1.0, 5.0))
dvtses = st.builds(
    lambda keep, branch, steps, aggregate: Dvts(keep * branch, keep, branch, steps, aggregate),
    st.integers(1, 3),
    st.integers(1, 3),
    max_steps,
    aggregates,
)
lookaheads = st.builds(
    lambda keep, branch, steps, ahead, aggregate, duplicates: Lookahead(
        keep * branch, keep, branch, steps, ahead, aggregate, duplicates
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    max_steps,
    st.integers(1, 3),
    aggregates,
    st.sampled_from(("drop", "keep")),
)
rebases = st.builds(Rebase, st.integers(1, 9), balances, max_steps, aggregates)
particles = st.builds(
    Particle,
    st.integers(1, 7),
    st.sampled_from(("systematic", "multinomial")),
    st.sampled_from((0.0, 0.5, 0.9, 1.0)),
    balances,
    max_steps,
    aggregates,
)
segmented = st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1, width=32) | st.just(0.0)), max_size=24).map(sorted)


# --- equal to the references ------------------------------------------------------------------------------------------


@given(st.data(), dvtses)
def test_dvts_grows_as_its_reference(data: st.DataObject, dvts: Dvts) -> None:
    grown = grow(data, dvts, lambda tree, forest: plain_dvts(tree, forest, dvts))
    for tree in grown.trees:
        alive = [node for node in tree.nodes if node.parent and node.status in (Status.OPEN, Status.RETIRED)]
        assert all(has_ended(node, dvts.max_steps) for node in alive)
        subtrees = [place_among_siblings(tree, node.chain()[0]) // dvts.branch for node in alive]
        assert len({*subtrees}) == len(subtrees) <= dvts.keep, "one answer of each subtree"


@given(st.data(), rebases)
def test_rebase_grows_as_its_reference(data: st.DataObject, rebase: Rebase) -> None:
    grown = grow(data, rebase, lambda tree, forest: plain_rebase(tree, forest, rebase))
    for tree in grown.trees:
        assert sum(node.status == Status.RETIRED for node in tree.nodes) <= rebase.n


@given(st.data(), particles)
def test_particles_grow_as_their_reference(data: st.DataObject, policy: Particle) -> None:
    grow(data, policy, lambda tree, forest: plain_particle(tree, forest, policy))


@given(st.data(), lookaheads)
def test_lookahead_grows_as_its_reference(data: st.DataObject, policy: Lookahead) -> None:
    grown = grow(data, policy, lambda tree, forest: plain_lookahead(tree, forest, policy))
    for tree in grown.trees:
        for node in tree.nodes:
            if node.row >= 0 and node.parent:
                greedy = bool(grown.forest.flags[node.row] & Flag.GREEDY)
                assert greedy == (node.depth > 1 and place_among_siblings(tree, node) == 0), "probes, and only they, are greedy"


@given(st.data(), forests(levels=True) | forests(), dvtses, rebases, particles, lookaheads)
def test_references_on_forests_that_no_policy_grew(
    data: st.DataObject, grown: Grown, dvts: Dvts, rebase: Rebase, particle: Particle, lookahead: Lookahead
) -> None:
    chosen = some_trees(data, grown)
    trees, forest = i32(*chosen), grown.forest
    mine = [(index, grown.trees[index]) for index in chosen]
    compare(decide(forest, dvts, trees), {index: plain_dvts(tree, forest, dvts) for index, tree in mine}, grown)
    compare(decide(forest, rebase, trees), {index: plain_rebase(tree, forest, rebase) for index, tree in mine}, grown)
    compare(decide(forest, particle, trees), {index: plain_particle(tree, forest, particle) for index, tree in mine}, grown)
    compare(decide(forest, lookahead, trees), {index: plain_lookahead(tree, forest, lookahead) for index, tree in mine}, grown)


# --- what the papers promise ------------------------------------------------------------------------------------------


def level(scores: list[float], finishes: list[Finish] | None = None) -> Grown:
    """One tree of one level."""
    grown = planted(1)
    tree = grown.trees[0]
    for score, finish in zip(scores, finishes or [Finish.STEP] * len(scores), strict=True):
        add_child(grown, tree, tree.root, "a\n", finish, score)
    settle(grown)
    return grown


def counts_of(policy: Rebase | Particle, grown: Grown) -> dict[int, int]:
    """Children by place on the level; what an ended chain holds counts too."""
    moves = policy.advance(grown.forest, i32(0))
    rows = [*moves.expand.tolist(), *moves.mark.tolist()]
    return {row - 1: count for row, count in zip(rows, [*moves.count.tolist(), *moves.visits.tolist()], strict=True)}


def test_rebase_shares_its_width_as_worked_out_by_hand() -> None:
    """At temperature 0.2, e**(R/T) of 0.9, 0.7, 0.5 and 0.1 are as 1 : 0.368 : 0.135 : 0.018."""
    assert counts_of(Rebase(n=16), level([0.5, 0.9, 0.1, 0.7])) == {1: 11, 3: 4, 0: 1}
    assert counts_of(Rebase(n=16, balance=100.0), level([0.5, 0.9, 0.1, 0.7])) == {1: 5, 3: 4, 0: 4, 2: 3}
    assert counts_of(Rebase(n=9), level([0.3] * 3)) == {0: 3, 1: 3, 2: 3}
    assert sorted(counts_of(Rebase(n=5), level([math.nan] * 2)).values()) == [2, 3]
    assert counts_of(Rebase(n=5), level([math.nan, 0.1])) == {1: 5}
    even = {0: 3, **dict.fromkeys(range(1, 8), 1)}
    assert counts_of(Rebase(n=10), level([0.9, *[0.7] * 7])) == even, "a seventh of seven is one, however it is rounded"


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), st.integers(1, 40), balances)
def test_rebase_uses_up_its_width_and_gives_the_better_no_less(scores: list[float], n: int, balance: float) -> None:
    grown = level(scores)
    found = counts_of(Rebase(n, balance), grown)
    assert sum(found.values()) == n
    counts = [found.get(place, 0) for place in sorted(range(len(scores)), key=lambda place: -scores[place])]
    shares = weights(sorted(scores, reverse=True), balance)
    for better, worse in pairwise(range(len(counts))):
        assert counts[better] >= counts[worse] or shares[better] == shares[worse]
    assert all(abs(count - n * share / sum(shares)) < len(scores) for count, share in zip(counts, shares, strict=True))


@given(segmented, st.data())
def test_apportion_equals_its_reference(entries: list[tuple[int, float]], data: st.DataObject) -> None:
    entries = sorted(entries, key=lambda entry: (entry[0], -entry[1]))
    names = sorted({name for name, _ in entries})
    parts = {name: [1.0, *(value for other, value in entries if other == name)] for name in names}
    totals = [data.draw(st.integers(0, 30)) for _ in names]
    segment = i32(*[name for name in names for _ in parts[name]])
    found = apportion(i32(*totals), np.array([value for name in names for value in parts[name]]), segment).tolist()
    wanted = [plain_shares(total, parts[name]) for name, total in zip(names, totals, strict=True)]
    assert found == [count for each in wanted for count in each]
    assert [sum(each) for each in wanted] == totals


def draws(policy: Particle, scores: list[float], times: int) -> NDArray[np.int64]:
    """How often each chain of a level is drawn, `[times, chains]`: the same level in many trees."""
    forest = planted(times).forest
    children = forest.expand(np.arange(times, dtype=np.int32), np.full(times, len(scores), np.int32))
    forest.score[children] = np.tile(np.array(scores, np.float32), times)
    forest.land(children, Status.OPEN)
    moves = policy.advance(forest, np.arange(times, dtype=np.int32))
    found = np.zeros(len(children), np.int64)
    found[moves.expand - times] = moves.count
    return found.reshape(times, -1)


SCORED = [0.5, 0.75, 0.1, 0.5, math.nan, 0.9]
ODDS = [1.0, 3.0, 1 / 9, 1.0, 0.0, 9.0]


def test_multinomial_draws_are_independent_and_by_the_odds() -> None:
    n, times = 6, 20_000
    found = draws(Particle(n, "multinomial", 1.0), SCORED, times)
    assert (found.sum(axis=1) == n).all()
    for place, odds in enumerate(ODDS):
        share = odds / sum(ODDS)
        spread = math.sqrt(share * (1 - share) / (n * times))
        assert abs(found[:, place].mean() / n - share) <= 5 * spread
        variance = n * share * (1 - share)
        assert abs(found[:, place].var() - variance) <= 5 * math.sqrt(variance * (1 + 3 * variance) / times)


def test_systematic_draws_are_by_the_odds_up_or_down_to_a_whole_number() -> None:
    n, times = 6, 20_000
    found = draws(Particle(n, "systematic", 1.0), SCORED, times)
    assert (found.sum(axis=1) == n).all()
    for place, odds in enumerate(ODDS):
        due = n * odds / sum(ODDS)
        assert {*found[:, place].tolist()} <= {math.floor(due), math.ceil(due)}
        assert abs(found[:, place].mean() - due) <= 5 * 0.5 / math.sqrt(times)


def test_balance_is_the_temperature_of_the_weights() -> None:
    found = draws(Particle(4, "multinomial", 1.0, 2.0), [0.5, 0.9], 20_000)
    assert abs(found[:, 1].mean() / 4 - 0.75) < 0.01, "the odds are 9, their square root is 3"


def test_particles_are_drawn_anew_only_when_few_of_them_count() -> None:
    even, uneven = [0.5, 0.5, 0.6, 0.4], [0.5, 0.01, 0.01, 0.01]  # effective sample sizes of 3.7 and 1.1
    assert (draws(Particle(4, ess=0.5), even, 50) == 1).all()
    assert (draws(Particle(4, ess=0.5), uneven, 50) != 1).any(axis=1).all()
    assert (draws(Particle(4, ess=0.0), uneven, 50) == 1).all()
    assert (draws(Particle(4, "multinomial", ess=1.0), [0.5] * 4, 50) != 1).any(axis=1).any(), "1: always"


def test_an_ended_particle_holds_its_places_and_is_weighed_with_them() -> None:
    policy = Particle(8, ess=0.5)
    grown = level([0.5, 0.5], [Finish.END, Finish.STEP])
    forest = grown.forest
    assert counts_of(policy, grown) == {0: 4, 1: 4}, "two of eight: drawn anew"
    forest.visits[1] = 7
    assert counts_of(policy, grown) == {0: 7, 1: 1}, "eight even particles: no draw"
    assert policy.advance(forest, i32(0)).finish.tolist() == []
    assert counts_of(Particle(8, ess=1.0), grown) == {0: 7, 1: 1}, "seven of eight of the weight"
    forest.score[2] = math.nan
    moves = Particle(8, ess=1.0).advance(forest, i32(0))
    assert (moves.mark.tolist(), moves.visits.tolist()) == ([1], [8])
    assert (moves.prune.tolist(), moves.finish.tolist()) == ([2], [0]), "ended particles hold all places"


def test_the_effective_sample_size_counts_places() -> None:
    grown = level([0.3, 0.7], [Finish.END, Finish.STEP])
    grown.forest.visits[1] = 5
    assert counts_of(Particle(6), grown) == {0: 5, 1: 1}, "five particles of 3/7 and one of 7/3 count for 3.1"
    assert counts_of(Particle(6, ess=0.6), grown)[1] > 2


def test_lookahead_judges_by_the_end_of_the_rollout() -> None:
    """The chain that scores worse leads to the better place."""
    grown = planted(1)
    tree = grown.trees[0]
    good, bad = (add_child(grown, tree, tree.root, text, Finish.STEP, score) for text, score in (("a\n", 0.9), ("b\n", 0.2)))
    settle(grown)
    policy = Lookahead(n=2, keep=1, branch=2)
    moves = policy.advance(grown.forest, i32(0))
    assert moves.expand.tolist() == [good.row, bad.row]
    assert moves.flags is not None
    assert moves.flags.tolist() == [Flag.GREEDY] * 2
    probes = [add_child(grown, tree, node, "c\n", Finish.END, score) for node, score in ((good, 0.3), (bad, 0.8))]
    settle(grown)
    moves = policy.advance(grown.forest, i32(0))
    assert (moves.expand.tolist(), moves.count.tolist(), moves.flags is not None and moves.flags.tolist()) == (
        [bad.row],
        [2],
        [0],
    )
    assert sorted(moves.prune.tolist()) == [good.row, probes[0].row]
    assert moves.retire.tolist() == [probes[1].row], "a whole answer"


# --- their segment operations -----------------------------------------------------------------------------------------


@given(segmented)
def test_sums_are_those_of_the_segment_alone(entries: list[tuple[int, float]]) -> None:
    segment, values = i32(*[name for name, _ in entries]), np.array([value / 3 for _, value in entries])
    wanted: list[float] = []
    for at, (name, _) in enumerate(entries):
        wanted.append((wanted[-1] if at and entries[at - 1][0] == name else 0.0) + float(values[at]))
    assert sums_in_segment(values, segment).tolist() == wanted


@given(segmented, balances)
def test_softmax(entries: list[tuple[int, float]], balance: float) -> None:
    segment = i32(*[name for name, _ in entries])
    key = np.array([math.nan if value > 0.9 else value for _, value in entries])
    found = softmax_in_segment(key, balance, segment)
    for start, length in zip(segment_starts(segment).tolist(), segment_lengths(segment).tolist(), strict=True):
        part = slice(start, start + length)
        np.testing.assert_allclose(found[part], weights(key[part].tolist(), balance), rtol=1e-12)
        assert found[part].max() == 1.0


@given(segmented, st.integers(1, 9), st.integers(0, 99))
def test_points(entries: list[tuple[int, float]], size: int, seed: int) -> None:
    names = sorted({name for name, _ in entries})
    parts = {name: [*(value for other, value in entries if other == name), 1.0] for name in names}
    segment = i32(*[name for name in names for _ in parts[name]])
    upper = sums_in_segment(np.array([value for name in names for value in parts[name]]), segment)
    drawn = mix64(np.arange(len(names) * size, dtype=np.uint64) + np.uint64(seed), np.zeros(1, np.uint64)) % np.uint64(8)
    points = drawn.reshape(len(names), size) / 8
    found = points_in_segment(points, upper, segment)
    wanted: list[int] = []
    for index, name in enumerate(names):
        begin = 0.0
        for end in upper[segment == name].tolist():
            wanted.append(sum(begin <= point < end for point in points[index].tolist()))
            begin = end
    assert found.tolist() == wanted
