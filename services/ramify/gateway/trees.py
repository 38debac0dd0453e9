"""Trees as messages."""

import numpy as np

from ramify.scheduler.commands import NodeRows
from ramify.v1 import job_pb2


def tree_message(nodes: NodeRows, root_id: int) -> job_pb2.Tree:
    """The steps of one tree, parents before children and siblings by child_index: the same bytes for the same tree.

    Args:
        nodes: of one tree, in any order.
        root_id: id of its root.
    """
    tree = job_pb2.Tree(root_id=root_id)
    token_end, text_end = np.cumsum(nodes.token_count, dtype=np.int64), np.cumsum(nodes.text_count, dtype=np.int64)
    # Breadth first: by depth, and within a depth by the parent's place, which the level above has fixed.
    place = {root_id: 0}
    depths = nodes.depth.tolist()
    parents, ids, index = nodes.parent_id.tolist(), nodes.node_id.tolist(), nodes.child_index.tolist()
    for depth in range(1, max(depths, default=0) + 1):
        level = [row for row, at in enumerate(depths) if at == depth]
        level.sort(key=lambda row: (place[parents[row]], index[row]))
        for row in level:
            place[ids[row]] = len(place)
            tokens = nodes.tokens[token_end[row] - nodes.token_count[row] : token_end[row]]
            text = nodes.text[text_end[row] - nodes.text_count[row] : text_end[row]]
            node = tree.nodes.add(
                node_id=ids[row],
                parent_id=parents[row],
                child_index=index[row],
                depth=depth,
                text=text.tobytes().decode("utf-8", "replace"),
                tokens=tokens.tolist(),
                logprob=float(nodes.logprob[row]),
                finish=job_pb2.Finish.ValueType(int(nodes.finish[row])),
            )
            if not np.isnan(nodes.score[row]):
                node.score = float(nodes.score[row])
    return tree
