"""The forest: every tree of a shard as rows of one table.

A node is a row, a parent is a row number, tokens and text lie in arenas. Row numbers are good until the next `compact`;
`(tree_id, node_id)` names a node for ever.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_GROUP, NO_ROW, Nodes, Status, Trees, TreeStatus
from ramify.scheduler.forest.ids import hash_ranges, mix64
from ramify.scheduler.forest.segments import Mask, Rows, position_in_segment, segment_lengths, segment_starts
from ramify.scheduler.forest.table import Arena, ranges
from ramify.scheduler.forest.validate import validate

Aggregate = Literal["last", "min", "mean", "prod"]
Hints = NDArray[np.int64]
"""Where a node was when it was named to the outside: epoch << 32 | row."""

EPOCHS_KEPT = 2  # compactions that a hint outlives; an older one is found by its name, which takes longer


class Forest(Nodes):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.trees = Trees()
        self.tokens = Arena(np.int32)
        self.text = Arena(np.uint8)
        self._listed = Arena(np.int32)  # the lists of landed nodes, one for each tree
        self._epoch = 0  # compactions so far
        self._moved: list[Rows] = []  # for each of the last epochs, the present row of each of its rows; newest last

    def admit(
        self,
        plan: int,
        tree_id: NDArray[np.uint64],
        problem: NDArray[np.int64],
        root_id: NDArray[np.uint64],
        tokens: NDArray[np.int32],
        token_count: NDArray[np.int32],
        text: NDArray[np.uint8],
        text_count: NDArray[np.int32],
        *,
        whole: bool = False,
    ) -> Rows:
        """Add T trees, each of them a root whose tokens are the prompt and whose text is the problem.

        Args:
            plan: index of the job's plan.
            tree_id: `[T]`.
            problem: `[T]` index in the job.
            root_id: `[T]`.
            tokens: the prompts, one after the other.
            token_count: `[T]` tokens of each prompt.
            text: the problems in UTF-8, one after the other.
            text_count: `[T]` bytes of each problem.
            whole: whether dead branches stay until the tree ends.

        Returns:
            `[T]` rows in `trees`.
        """
        trees = self.trees.append(len(tree_id))
        roots = self.append(len(tree_id))
        self.trees.tree_id[trees], self.trees.problem[trees], self.trees.plan[trees] = tree_id, problem, plan
        self.trees.root[trees], self.trees.best[trees], self.trees.best_score[trees] = roots, NO_ROW, np.nan
        self.trees.whole[trees] = whole
        self.tree[roots], self.parent[roots], self.node_id[roots] = trees, NO_ROW, root_id
        self.last_child[roots] = self.elder[roots] = NO_ROW
        self.status[roots], self.score[roots], self.group[roots] = Status.OPEN, np.nan, NO_GROUP
        self.place(roots, tokens, token_count, text, text_count)
        self._enlist(roots)
        return trees

    # --- what there is ----------------------------------------------------------------------------------------------

    def landed(self, trees: Rows) -> Rows:
        """`[L]` nodes of `trees` `[T]` (sorted) that are not in flight, grouped by tree, older nodes first.

        Of a tree that is not whole, only those that are OPEN or RETIRED are sure to be among them.
        """
        count = self.trees.listed_count[trees]
        rows = self._listed.take(self.trees.listed_start[trees], count)
        key = np.sort((np.repeat(trees.astype(np.int64), count) << 32) | rows)
        return np.asarray(key & 0xFFFFFFFF, np.int32)

    def frontier(self, trees: Rows) -> Rows:
        """`[F]` OPEN nodes of `trees` `[T]` (sorted), grouped by tree, older nodes first."""
        rows = self.landed(trees)
        return np.asarray(rows[self.status[rows] == Status.OPEN])

    def candidates(self, trees: Rows) -> Rows:
        """`[C]` nodes that may end an answer: OPEN or RETIRED nodes of `trees` `[T]` (sorted), grouped by tree; no roots."""
        rows = self.landed(trees)
        status = self.status[rows]
        return np.asarray(rows[((status == Status.OPEN) | (status == Status.RETIRED)) & (self.depth[rows] > 0)])

    def retired(self, trees: Rows) -> Rows:
        """`[F]` how many nodes of each of `trees` `[F]` (any order, repeats allowed) are RETIRED."""
        names, place = np.unique(trees, return_inverse=True)
        rows = self.landed(names.astype(np.int32))
        tree = self.tree[rows[self.status[rows] == Status.RETIRED]]
        return np.bincount(np.searchsorted(names, tree), minlength=len(names))[place].astype(np.int32)

    def ended(self, rows: Rows, max_steps: int) -> Mask:
        """`[R]` whether the chain that ends in each node can't go on: by its own end mark, its context or its depth."""
        finish = self.finish[rows]
        return np.asarray((finish == Finish.END) | (finish == Finish.CONTEXT) | (self.depth[rows] >= max_steps))

    def children(self, rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
        """The children of `rows` `[R]` that are still here, oldest first: `[C]`, and each one's parent as index in `rows`."""
        if not len(rows):
            return rows, np.empty(0, np.int64)
        found, owners = list[Rows](), list[NDArray[np.int64]]()
        at, owner = self.last_child[rows], np.arange(len(rows))
        while len(at := at[(there := at != NO_ROW)]):
            owner = owner[there]
            found.append(at)
            owners.append(owner)
            at = self.elder[at]
        child, owner = np.concatenate((*found, rows[:0])), np.concatenate((*owners, owner[:0]))
        order = np.lexsort((child, owner))
        return child[order], owner[order]

    # --- growth -----------------------------------------------------------------------------------------------------

    def expand(self, rows: Rows, counts: Rows, flags: NDArray[np.uint8] | None = None) -> Rows:
        """Add `counts` `[E]` children to each of `rows` `[E]` (distinct), status SAMPLING.

        Args:
            rows: `[E]`.
            counts: `[E]` at least 1 each.
            flags: `[E]` bits of `Flag` for the children; none if absent.

        Returns:
            `[sum of counts]` the children, grouped by parent.
        """
        parent = np.repeat(rows, counts)
        children = self.append(len(parent))
        place = position_in_segment(np.repeat(np.arange(len(rows), dtype=np.int32), counts))
        index = place + self.child_count[parent]
        self.tree[children], self.parent[children], self.child_index[children] = self.tree[parent], parent, index
        self.node_id[children] = mix64(self.node_id[parent], index.astype(np.uint64))
        self.depth[children] = self.depth[parent] + 1
        self.status[children], self.score[children], self.group[children] = Status.SAMPLING, np.nan, NO_GROUP
        self.last_child[children] = NO_ROW
        self.elder[children] = np.where(place > 0, children - 1, self.last_child[parent])
        self.last_child[rows] = children[np.cumsum(counts) - 1]
        if flags is not None:
            self.flags[children] = np.repeat(flags, counts)
        self.child_count[rows] += counts
        self.status[rows] = Status.EXPANDED
        np.add.at(self.trees.outstanding, self.tree[rows], counts.astype(np.int32))
        np.add.at(self.trees.asked, self.tree[rows], counts.astype(np.int64))  # of the column's own type: 30 times faster
        return children

    def fill(
        self,
        rows: Rows,
        tokens: NDArray[np.int32],
        token_count: NDArray[np.int32],
        text: NDArray[np.uint8],
        text_count: NDArray[np.int32],
        logprob: NDArray[np.float32],
        finish: NDArray[np.uint8],
    ) -> None:
        """Write the sampled steps of `rows` `[R]`."""
        self.place(rows, tokens, token_count, text, text_count)
        self.logprob[rows], self.finish[rows] = logprob, finish
        self.text_hash[rows] = mix64(self.text_hash[self.parent[rows]], hash_ranges(text, text_count))
        np.add.at(self.trees.spent, self.tree[rows], token_count.astype(np.int64))
        np.add.at(self.trees.steps, self.tree[rows], np.int64(1))

    def land(self, rows: Rows, status: int) -> None:
        """The nodes `rows` `[R]` are in flight no more: the next decision about their trees knows of them."""
        tree = self.tree[rows]
        self.status[rows] = status
        self.turn[rows] = self.trees.turn[tree] + 1
        np.subtract.at(self.trees.outstanding, tree, np.int32(1))
        np.add.at(self.trees.settled, tree, self.token_count[rows].astype(np.int64))
        self._enlist(rows if status == Status.OPEN else rows[self.trees.whole[tree]])

    def unlist(self, trees: Rows) -> None:
        """Shorten the lists of `trees` `[T]` (sorted) to what `landed` promises."""
        trees = trees[~self.trees.whole[trees]]
        rows = self.landed(trees)
        status = self.status[rows]
        rows = rows[(status == Status.OPEN) | (status == Status.RETIRED)]
        count = np.bincount(np.searchsorted(trees, self.tree[rows]), minlength=len(trees)).astype(np.int32)
        self.trees.listed_count[trees] = count
        self._listed.data[ranges(self.trees.listed_start[trees], count)] = rows

    # --- chains -----------------------------------------------------------------------------------------------------

    def paths(self, rows: Rows, *, roots: bool = False) -> tuple[Rows, Rows]:
        """The nodes of each chain, from its first step to its last; the root before them, where `roots`.

        Args:
            rows: `[R]` last nodes.
            roots: whether each path begins with its root.

        Returns:
            `[sum of lengths]` nodes, one chain after the other, and `[R]` the paths' lengths.
        """
        depth = self.depth[rows].astype(np.int32)
        path = np.full((len(rows), int(depth.max(initial=0)) + 1), NO_ROW, np.int32)
        at, chain = rows, np.arange(len(rows))
        while len(at):
            inner = self.depth[at] > 0
            if not inner.all():
                at, chain = at[inner], chain[inner]
            path[chain, self.depth[at]] = at
            at = self.parent[at]
        if roots:
            path[:, 0] = self.trees.root[self.tree[rows]]
        return path[path != NO_ROW], depth + roots

    def chain_scores(self, rows: Rows, aggregate: Aggregate) -> NDArray[np.float32]:
        """`[R]` score of the chain that ends in each node; NaN if one of the steps that count has none."""
        if aggregate == "last":
            return self.score[rows]
        path, length = self.paths(rows)
        scores = np.full(len(rows), np.nan, np.float32)
        some = length > 0
        if not some.any():
            return scores
        starts = (np.cumsum(length, dtype=np.int64) - length)[some]
        steps = self.score[path].astype(np.float64)
        if aggregate == "min":
            scores[some] = np.minimum.reduceat(steps, starts)
        elif aggregate == "prod":
            scores[some] = np.multiply.reduceat(steps, starts)
        else:
            scores[some] = np.add.reduceat(steps, starts) / length[some]
        return scores

    def chain_tokens(self, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Prompt and steps of the chains that end in `rows` `[R]`: tokens one after the other, and offsets `[R+1]`."""
        nodes, length = self.paths(rows, roots=True)
        count = self.token_count[nodes]
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(count, dtype=np.int64)))
        offsets = ends[np.concatenate((np.zeros(1, np.int64), np.cumsum(length, dtype=np.int64)))]
        return self.tokens.take(self.token_start[nodes], count), offsets

    def texts(self, rows: Rows) -> list[str]:
        """The text of each node's own step; of a root, the problem."""
        data = self.text.data
        start, count = self.text_start[rows].tolist(), self.text_count[rows].tolist()
        return [data[s : s + c].tobytes().decode("utf-8", "replace") for s, c in zip(start, count, strict=True)]

    def step_texts(self, rows: Rows) -> list[list[str]]:
        """The texts of each chain's steps, for the chains that end in `rows` `[R]`."""
        path, length = self.paths(rows)
        texts, ends = self.texts(path), np.cumsum(length).tolist()
        return [texts[end - count : end] for end, count in zip(ends, length.tolist(), strict=True)]

    # --- names ------------------------------------------------------------------------------------------------------

    def hints(self, rows: Rows) -> Hints:
        """`[R]` by which `locate` finds the nodes `rows` `[R]` again, fast."""
        return np.asarray((np.int64(self._epoch) << 32) | rows, np.int64)

    def locate(self, hint: Hints, tree_id: NDArray[np.uint64], node_id: NDArray[np.uint64]) -> tuple[Rows, NDArray[np.int64]]:
        """Rows of the named nodes that are still here, and which of the names they answer.

        Args:
            hint: `[R]` of `hints`; a wrong one costs time alone.
            tree_id: `[R]`.
            node_id: `[R]`; both together are the names.
        """
        if self.size == 0:
            return np.empty(0, np.int32), np.empty(0, np.int64)
        at, epoch = hint & 0xFFFFFFFF, hint >> 32
        for back, moved in enumerate(reversed(self._moved), 1):
            if (old := (epoch == self._epoch - back) & (at < len(moved))).any():
                at[old] = moved[at[old]]
        at = np.where((at >= 0) & (at < self.size), at, 0)
        right = (self.node_id[at] == node_id) & (self.trees.tree_id[self.tree[at]] == tree_id)
        lost = np.flatnonzero(~right & (epoch < self._epoch - len(self._moved)))
        if len(lost):
            names = mix64(self.trees.tree_id[self.tree[: self.size]], self.node_id[: self.size])
            order = np.argsort(names)
            place = np.searchsorted(names[order], mix64(tree_id[lost], node_id[lost]))
            at[lost] = order[np.minimum(place, self.size - 1)]
            right = (self.node_id[at] == node_id) & (self.trees.tree_id[self.tree[at]] == tree_id)
        return at[right].astype(np.int32), np.flatnonzero(right)

    # --- memory -----------------------------------------------------------------------------------------------------

    def dead_rows(self) -> int:
        """About how many rows `compact` would free: those that were given up, and all of trees that are done."""
        gone = self.trees.status[: self.trees.size] == TreeStatus.FREE
        pruned = (self.status[: self.size] == Status.PRUNED) & ~self.trees.whole[self.tree[: self.size]]
        return int(np.count_nonzero(pruned | gone[self.tree[: self.size]]))

    def live(self, rows: Rows) -> Mask:
        """`[size]` which of the nodes `rows` `[R]` a tree still grows from or answers with, and what is above those."""
        status, tree, t = self.status[rows], self.tree[rows], self.trees
        grows = (status != Status.PRUNED) & (status != Status.EXPANDED) | (self.parent[rows] == NO_ROW) | t.whole[tree]
        grows = (grows | (t.best[tree] == rows)) & (t.status[tree] != TreeStatus.FREE)
        return self._with_paths(rows[grows])

    def _with_paths(self, rows: Rows) -> Mask:
        """`[size]` the nodes `rows` `[R]` and all that are above them."""
        keep = np.zeros(self.size, np.bool_)
        place = np.empty(self.size, np.int32)
        while len(rows):
            keep[rows] = True
            rows = self.parent[rows]
            rows = rows[rows != NO_ROW]
            rows = rows[~keep[rows]]
            place[rows] = np.arange(len(rows), dtype=np.int32)
            rows = rows[place[rows] == np.arange(len(rows), dtype=np.int32)]  # each once: of siblings the last one has written
        return keep

    def compact(self) -> None:
        """Free the rows of dead branches and of trees that are done; what is live, uncommitted or above such a node stays."""
        size, t = self.size, self.trees
        keep = self.live(np.arange(size, dtype=np.int32)) | self._with_paths(np.flatnonzero(self.dirty[:size]).astype(np.int32))
        trees_kept = np.zeros(t.size, np.bool_)
        trees_kept[self.tree[:size][keep]] = True
        self._renumber(self.keep(keep), t.keep(trees_kept))

    def _renumber(self, new_row: Rows, new_tree: Rows) -> None:
        """Put new row numbers in the place of the old ones, wherever they stand."""
        size, trees = self.size, self.trees
        self.tree[:size] = new_tree[self.tree[:size]]
        for column in (self.parent[:size], trees.best[: trees.size], trees.root[: trees.size]):
            column[column != NO_ROW] = new_row[column[column != NO_ROW]]
        present = np.append(new_row, np.int32(NO_ROW))  # so that NO_ROW stays what it is
        self._moved = [*(present[moved] for moved in self._moved[1 - EPOCHS_KEPT :]), new_row]
        self._epoch += 1
        self.tokens, self.token_start[:size] = self.tokens.repack(self.token_start[:size], self.token_count[:size])
        self.text, self.text_start[:size] = self.text.repack(self.text_start[:size], self.text_count[:size])
        self.relist()

    def thread(self, rows: Rows) -> None:
        """Link the nodes `rows` `[R]` (ascending, whole trees of them) as children, and list those that have landed."""
        parent = self.parent[rows]
        child = rows[parent != NO_ROW]
        child = child[np.argsort(self.parent[child], kind="stable")]
        above = self.parent[child]
        self.last_child[rows] = self.elder[rows] = NO_ROW
        same = above[1:] == above[:-1]
        self.elder[child[1:][same]] = child[:-1][same]
        self.last_child[above] = child  # of several the last, which is the newest, stays
        status = self.status[rows]
        wanted = (status == Status.OPEN) | (status == Status.RETIRED)
        self._enlist(rows[wanted | (status > Status.SCORING) & self.trees.whole[self.tree[rows]]])

    def relist(self) -> None:
        """Make the lists of landed nodes and the links anew, from statuses and parents."""
        trees = self.trees
        self._listed = Arena(np.int32)
        trees.listed_start[: trees.size] = trees.listed_count[: trees.size] = trees.listed_room[: trees.size] = 0
        self.thread(np.arange(self.size, dtype=np.int32))

    def _enlist(self, rows: Rows) -> None:
        """Add nodes to their trees' lists. A list that outgrows its place moves to one of twice the room."""
        t = self.trees
        rows = rows[np.argsort(self.tree[rows], kind="stable")]
        tree = self.tree[rows]
        trees, added = tree[segment_starts(tree)], segment_lengths(tree)
        count = t.listed_count[trees]
        short = count + added > t.listed_room[trees]
        if short.any():
            moving, length = trees[short], count[short]
            room = 2 * (length + added[short])
            held = self._listed.take(t.listed_start[moving], length)
            t.listed_start[moving] = self._listed.reserve(int(room.sum())) + np.cumsum(room) - room
            t.listed_room[moving] = room
            self._listed.data[ranges(t.listed_start[moving], length)] = held
        self._listed.data[np.repeat(t.listed_start[trees] + count, added) + position_in_segment(tree)] = rows
        t.listed_count[trees] = count + added

    def place(
        self,
        rows: Rows,
        tokens: NDArray[np.int32],
        token_count: NDArray[np.int32],
        text: NDArray[np.uint8],
        text_count: NDArray[np.int32],
    ) -> None:
        """Put tokens and text of `rows` `[R]` into the arenas, one row's after the other."""
        self.token_start[rows] = self.tokens.append(tokens) + np.cumsum(token_count, dtype=np.int64) - token_count
        self.text_start[rows] = self.text.append(text) + np.cumsum(text_count, dtype=np.int64) - text_count
        self.token_count[rows], self.text_count[rows] = token_count, text_count

    @property
    def column_bytes(self) -> int:
        """Bytes allocated for all but tokens and text."""
        return self.nbytes + self.trees.nbytes + self._listed.data.nbytes + sum(moved.nbytes for moved in self._moved)

    def validate(self) -> None:
        """Check every invariant; for tests and for debugging.

        Raises:
            AssertionError: names the invariant.
        """
        validate(self)
