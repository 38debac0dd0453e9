"""Trees as messages."""

from collections.abc import Sequence

import numpy as np

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import writers
from ramify.scheduler.plan import Generator
from ramify.v1 import job_pb2


def tree_message(nodes: NodeRows, root_id: int, generators: Sequence[Generator] = ()) -> job_pb2.Tree:
    """The steps of one tree, parents before children and siblings by child_index: the same bytes for the same tree.

    Args:
        nodes: of one tree, in any order; the parent of each is among them, or the root.
        root_id: id of its root.
        generators: the job's, in the order of its spec, where it has several.
    """
    names = [each.model for each in generators]
    writer = writers(nodes.node_id, [each.weight for each in generators]).tolist() if generators else []
    tree = job_pb2.Tree(root_id=root_id)
    token_end, text_end = np.cumsum(nodes.token_count, dtype=np.int64), np.cumsum(nodes.text_count, dtype=np.int64)
    for row in canonical_order(nodes, root_id):
        tokens = nodes.tokens[token_end[row] - nodes.token_count[row] : token_end[row]]
        text = nodes.text[text_end[row] - nodes.text_count[row] : text_end[row]]
        node = tree.nodes.add(
            node_id=int(nodes.node_id[row]),
            parent_id=int(nodes.parent_id[row]),
            child_index=int(nodes.child_index[row]),
            depth=int(nodes.depth[row]),
            text=text.tobytes().decode("utf-8", "replace"),  # a step may end inside of a character
            tokens=tokens.tolist(),
            logprob=float(nodes.logprob[row]),
            finish=job_pb2.Finish.ValueType(int(nodes.finish[row])),
        )
        if writer:
            node.generator = names[writer[row]]
        if not np.isnan(nodes.score[row]):
            node.score = float(nodes.score[row])
    return tree


def canonical_order(nodes: NodeRows, root_id: int) -> list[int]:
    """Breadth first: by depth, within a depth by the parent's place, which the level above has fixed, then by child_index."""
    parents, ids, index = nodes.parent_id.tolist(), nodes.node_id.tolist(), nodes.child_index.tolist()
    by_depth = np.argsort(nodes.depth, kind="stable")
    levels = np.split(by_depth, np.flatnonzero(np.diff(nodes.depth[by_depth])) + 1)
    place = {root_id: 0}
    order: list[int] = []
    for level in levels:
        rows: list[int] = sorted(level.tolist(), key=lambda row: (place[parents[row]], index[row]))
        for row in rows:
            place[ids[row]] = len(place)
        order += rows
    return order
