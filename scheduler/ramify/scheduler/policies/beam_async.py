"""Beam search without a barrier: a chain goes on as soon as the scores at hand justify it.

Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2) with the levels of a tree for rungs: of the `a`
chains of a level that have landed so far, the best `floor(a * keep / n)` go on at once, and the best `keep` when no more can land
there. A chain that went on early stays, also when a later one turns out better, so a level may hold more than `keep * branch`
chains; and no straggler is waited for while others earn their places. What has not begun when the tree ends is withdrawn.

With `speculate`, so many chains of a level that would be among the best `keep` as things stand go on before they have earned it.
Their children count for nothing until they have; if they never do, the children are given up, and their tokens are wasted.

An ended chain that has earned its place is set aside with it (`finished = retire`). The tree ends when `keep` are, if the best of
them scores `stop_score` or more; else all that is in flight is waited for, since a straggler may know better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.columns import Flag, Status
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import (
    Mask,
    Rows,
    count_before,
    first_of_group,
    order_in_segment,
    segment_lengths,
    segment_starts,
)
from ramify.scheduler.policies.base import Moves

if TYPE_CHECKING:
    from ramify.scheduler.policies.beam import Beam

Table = NDArray[np.int64]
"""`[T, levels]` a number for each level of each tree; level 0 is the root's."""


@dataclass(frozen=True, slots=True)
class Chains:
    """The chains of some trees that have landed and count, C of them: by tree, by level, and the best of a level first."""

    rows: Rows  # [C]
    segment: Rows  # [C] number of the chain's level, among the levels of all trees
    tree: NDArray[np.int64]  # [C] index into the trees
    depth: NDArray[np.int64]  # [C]
    score: NDArray[np.float32]  # [C]
    rank: Rows  # [C] place in its level, among those that may go on
    eligible: Mask  # [C]
    ended: Mask  # [C]
    waits: Mask  # [C] undecided: neither given up nor set aside nor continued in earnest
    speculated: Mask  # [C] of these, continued as a speculation
    promoted: Mask  # [C] set aside, or continued in earnest


def advance(beam: Beam, forest: Forest, trees: Rows) -> Moves:
    """Promote what has earned it in `trees` `[T]`, sorted, whatever is still in flight."""
    chains = _chains(beam, forest, trees)
    levels = int(chains.depth.max()) + 2
    arrived = _per_level(chains, np.ones(len(chains.rows), np.int64), len(trees), levels)
    grew = chains.promoted & (forest.status[chains.rows] == Status.EXPANDED)
    sent = _per_level(chains, np.where(grew, forest.child_count[chains.rows], 0), len(trees), levels)
    sent = np.concatenate((np.ones((len(trees), 1), np.int64), sent[:, :-1]), 1)  # children land one level below
    retired = _per_level(chains, forest.status[chains.rows] == Status.RETIRED, len(trees), levels)
    places = np.maximum(0, beam.keep - (np.cumsum(retired, 1) - retired))

    # A level is closed when all above it are, and all that was sent there has landed. What is promoted now will send more.
    closed = np.logical_and.accumulate(arrived == sent, 1)
    earns = _earns(chains, _quota(beam, arrived, places, closed))
    first, sends = np.full(len(trees), levels), earns & chains.waits & ~chains.ended
    np.minimum.at(first, chains.tree[sends], chains.depth[sends])
    closed &= np.arange(levels) <= first[:, None]
    earns = _earns(chains, _quota(beam, arrived, places, closed))

    retire = earns & chains.waits & chains.ended
    done = closed[:, -1] & (first == levels)
    enough = retired.sum(1) + np.bincount(chains.tree[retire], minlength=len(trees)) >= beam.keep
    good = chains.score >= np.float32(beam.stop_score)
    good &= retire | (forest.status[chains.rows] == Status.RETIRED)
    done |= enough & (np.bincount(chains.tree[good], minlength=len(trees)) > 0)
    goes_on = earns & chains.waits & ~chains.ended & ~done[chains.tree]
    dropped = chains.rows[closed[chains.tree, chains.depth] & chains.waits & ~earns]
    early = _speculations(beam, chains, places, len(trees), levels) & ~earns & ~done[chains.tree]
    early &= ~closed[chains.tree, chains.depth]
    expand, flags = _in_order(chains, goes_on & ~chains.speculated, early)
    children, _ = forest.children(dropped[forest.status[dropped] == Status.EXPANDED])
    return Moves(
        expand=expand,
        count=np.where(forest.depth[expand] == 0, beam.n, beam.branch).astype(np.int32),
        flags=flags,
        confirm=chains.rows[goes_on & chains.speculated],
        prune=np.concatenate((dropped, children[forest.status[children] == Status.OPEN])),
        retire=chains.rows[retire],
        finish=trees[done],
    )


def _chains(beam: Beam, forest: Forest, trees: Rows) -> Chains:
    rows = forest.landed(trees)
    rows = rows[(forest.flags[rows] & Flag.SPECULATIVE) == 0]
    tree, depth = np.searchsorted(trees, forest.tree[rows]), forest.depth[rows].astype(np.int64)
    segment = (tree * (depth.max() + 1) + depth).astype(np.int32)  # the levels of all trees, numbered through
    score = forest.chain_scores(rows, beam.aggregate)
    order = order_in_segment(segment, score, forest.node_id[rows])
    rows, segment, score, tree, depth = rows[order], segment[order], score[order], tree[order], depth[order]
    status, child = forest.status[rows], forest.last_child[rows]
    speculated = (status == Status.EXPANDED) & ((forest.flags[child] & Flag.SPECULATIVE) != 0)
    promoted = ((status == Status.EXPANDED) & ~speculated) | (status == Status.RETIRED)

    eligible = np.ones(len(rows), np.bool_)
    if beam.duplicates == "drop":  # of those that say the same the one that has gone on already stays, else the first
        ahead = np.lexsort((~promoted, segment))
        eligible[ahead] = first_of_group(segment[ahead], forest.text_hash[rows[ahead]])
    best = np.repeat(score[segment_starts(segment)], segment_lengths(segment))
    eligible &= ~(score < np.float32(beam.threshold) * best) | promoted
    eligible &= (status != Status.PRUNED) | ~np.isnan(score)  # what failed has no place in the ranking
    return Chains(
        rows=rows,
        segment=segment,
        tree=tree,
        depth=depth,
        score=score,
        rank=count_before(eligible, segment),
        eligible=eligible,
        ended=forest.ended(rows, beam.max_steps),
        waits=(status == Status.OPEN) | speculated,
        speculated=speculated,
        promoted=promoted,
    )


def _per_level(chains: Chains, number: NDArray[np.int64] | Mask, trees: int, levels: int) -> Table:
    """Sum a number of each chain over its level."""
    found = np.bincount(chains.tree * levels + chains.depth, number, trees * levels)
    return found.astype(np.int64).reshape(trees, levels)


def _quota(beam: Beam, arrived: Table, places: Table, closed: NDArray[np.bool_]) -> Table:
    """How many of a level may go on: its share of what has landed, and all its places once it is closed."""
    quota = np.where(closed, places, np.minimum(places, arrived * beam.keep // beam.n))
    quota[:, 0] = 1  # the root goes on
    return quota


def _earns(chains: Chains, quota: Table) -> Mask:
    return chains.eligible & (chains.rank < quota[chains.tree, chains.depth])


def _speculations(beam: Beam, chains: Chains, places: Table, trees: int, levels: int) -> Mask:
    """The likeliest survivors that may go on before they have earned it."""
    likely = chains.eligible & chains.waits & ~chains.ended & (chains.rank < places[chains.tree, chains.depth])
    likely &= ~chains.speculated
    open_ = beam.speculate - _per_level(chains, chains.speculated, trees, levels)
    return likely & (count_before(likely, chains.segment) < open_[chains.tree, chains.depth])


def _in_order(chains: Chains, earned: Mask, early: Mask) -> tuple[Rows, NDArray[np.uint8]]:
    """Chains to continue, and their children's flags: tree by tree, what is earned first, the deepest first, the best first."""
    at = np.flatnonzero(earned | early)
    at = at[np.lexsort((chains.rank[at], -chains.depth[at], early[at], chains.tree[at]))]
    return chains.rows[at], np.where(early[at], Flag.SPECULATIVE, 0).astype(np.uint8)
